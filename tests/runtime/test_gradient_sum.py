"""Gradients of several processes are summed while the backward pass goes on."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn

from lmpg.runtime.gradient_sum import GradientSum, buckets
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.ranks import forked


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(5, 5) for _ in range(4)]
    layers[2].weight = layers[0].weight  # tied
    return nn.Sequential(*layers)


def rows(rank: int, count: int) -> torch.Tensor:
    data = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    return data[rank::count]


def backward(net: nn.Module, rows_BD: torch.Tensor) -> None:
    (net(rows_BD) ** 2).sum().backward()


def gradients(net: nn.Module) -> list[float]:
    return [x for p in net.parameters() for x in p.grad.flatten().tolist()]


def one_process() -> list[float]:
    net = network()
    backward(net, rows(0, 1))
    return gradients(net)


def summed(rank: int, size: int, overlapped: bool = True, idle: int | None = None, steps=1):
    """The sum, and which all-reduces had begun when the last backward pass was over. `idle`: a
    process that has no rows."""
    net, sent = network(), []
    parameters = list(net.parameters())
    sums = GradientSum(parameters, size)
    all_reduce = dist.all_reduce

    def watched(flat, **options):
        sent.append(len(flat))
        return all_reduce(flat, **options)

    dist.all_reduce = watched
    for _ in range(steps):
        mine = rows(rank, 2) if idle is None else rows(0, 1)
        for p in parameters:
            p.grad = None
        if rank != idle:  # a micro-batch, and the last one
            backward(net, mine[:1])
        with sums.overlapped() if overlapped else nullcontext():
            if rank != idle:
                backward(net, mine[1:])
        sent_before, found = len(sent), sums.finish()
        assert found is None
        sent.clear()
    dist.all_reduce = all_reduce
    return gradients(net), sent_before


@catches("gradients averaged over processes", "a bucket is sent before it is full")
def test_the_sum_is_that_of_one_process_and_begins_before_the_pass_ends():
    expected = one_process()
    for size, number in ((1, 7), (120, 3), (10**9, 1)):
        first, second = forked(2, lambda rank, size=size: summed(rank, size, steps=2))
        for found, sent in (first, second):
            assert sent == number
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert first[0] == second[0]


@catches("a process without rows sends its buckets in another order")
def test_a_process_without_rows_and_one_that_does_not_overlap_take_part():
    expected = one_process()
    for found, sent in forked(2, lambda rank: summed(rank, 1, overlapped=rank == 0, idle=1)):
        assert sent in (0, 7)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_buckets_are_dealt_from_the_end_by_type():
    parameters = [nn.Parameter(torch.zeros(n)) for n in (4, 2, 3, 1)]
    parameters.insert(2, nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)))
    numels = [[p.numel() for p in bucket] for bucket in buckets(parameters, 12)]
    assert numels == [[1, 3], [1], [2, 4]]


def test_a_pass_that_failed_leaves_nothing_of_it_behind():
    def failing(rank):
        net = network()
        sums = GradientSum(list(net.parameters()), 1)
        try:
            with sums.overlapped():
                raise ValueError
        except ValueError:
            pass
        with sums.overlapped():
            backward(net, rows(rank, 2))
        sums.finish()
        return gradients(net)

    assert forked(2, failing)[0] == pytest.approx(one_process(), rel=1e-5, abs=1e-6)


@catches("a traceback where a process is lost as gradients begin to travel")
def test_a_process_that_is_lost_as_gradients_begin_to_travel_is_named(monkeypatch):
    def fails(flat, **options):
        raise RuntimeError("Connection closed by peer")

    def member(rank):
        PartialState._reset_state()  # this process was alone before it was forked
        processes, net = Processes(), network()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        monkeypatch.setattr(dist, "all_reduce", fails)
        try:
            with processes.last_backward(list(net.parameters())):
                backward(net, rows(0, 1))
        except UserError as error:
            return str(error)

    assert "rank 1 (process " in forked(2, member, lost=1)[0]
