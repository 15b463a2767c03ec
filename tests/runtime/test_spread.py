"""How weights are spread over processes: who gathers what with whom, and what is refused."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmpg.runtime import company as company_module
from lmpg.runtime.company import Company
from lmpg.runtime.parts import load_weights, mine, part_of, spread_as, total_norm
from lmpg.runtime.sharding import as_forward, held, whole_copy
from lmpg.runtime.sharding_asked import AskedSharding
from lmpg.runtime.spread import spread
from lmpg.settings.section import UserError
from tests.support.planted import catches


class Meeting:
    """all_reduce with MAX over threads, each of them a process."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)
        self.values: dict[int, int] = {}

    def __call__(self, x: torch.Tensor, op: Any) -> None:
        self.values[threading.get_ident()] = int(x)
        self.barrier.wait(5)
        most = max(self.values.values())
        self.barrier.wait(5)
        x.fill_(most)


def run_each(plans: list[list[int]], monkeypatch) -> list[list[int]]:
    """What each of several processes gathered, in order, which want these numbers; 0 is a
    meeting."""
    monkeypatch.setattr(company_module.dist, "all_reduce", Meeting(len(plans)))
    done: list[list[int]] = [[] for _ in plans]

    def process(rank: int) -> None:
        company = Company(torch.device("cpu"))
        for number in (1, 2, 3):
            company.number_of(lambda number=number: done[rank].append(number))
        for wanted in [*plans[rank], 0]:
            company.come_to(wanted)
            if wanted:
                done[rank].append(wanted)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    return done


@catches("who waits for a meeting takes no part in a gathering")
@pytest.mark.parametrize(
    "plans", [[[1, 2], []], [[1, 2, 1], [2], [3, 3]], [[1, 0, 2], [0]], [[], [], []]]
)
def test_all_processes_gather_the_same_in_the_same_order_whatever_each_of_them_wants(
    plans, monkeypatch
):
    done = run_each(plans, monkeypatch)
    assert all(found == done[0] for found in done)
    for plan in plans:
        for number in (1, 2, 3):
            assert done[0].count(number) >= plan.count(number)


def test_what_is_not_shared_out_goes_through_as_if_nothing_were_there():
    layer = torch.nn.Linear(3, 2)
    x = torch.ones(1, 3)
    torch.testing.assert_close(as_forward(layer, layer, x), layer(x), rtol=0, atol=0)
    with torch.no_grad(), held(layer):
        assert layer.weight is next(layer.parameters())
    with whole_copy(layer) as whole:
        assert whole is layer
    weight = layer.weight.detach()
    assert mine(weight) is weight
    assert part_of(weight, weight) is weight
    assert spread_as(weight, weight) is weight
    assert float(total_norm([weight])) == pytest.approx(float(weight.norm()))


def test_saved_weights_of_another_module_are_refused_by_name():
    layer = torch.nn.Linear(3, 2)
    state = {"weight": torch.zeros(2, 3), "other": torch.zeros(1)}
    with pytest.raises(UserError, match="bias is missing; other is unexpected"):
        load_weights(dict(layer.named_parameters()), state)


def processes(count: int, launched: AskedSharding | None = None) -> Any:
    return SimpleNamespace(count=count, launch=SimpleNamespace(sharding=launched))


@pytest.mark.parametrize(
    ("count", "launched", "asked", "optimizer", "said"),
    [
        (1, None, "full", "adamw", "one process.*torchrun --nproc_per_node 2"),
        (2, None, "hybrid", "adamw", "1 machines.*expected 2.*run.sharding to full"),
        (2, None, "full", "adafactor", "update.optimizer = adafactor.*adamw"),
        (2, AskedSharding(2), "none", "adamw", "launch asks for FSDP.*leave run.sharding out"),
        (4, AskedSharding(2), "full", "adamw", "over 4 processes.*over 2.*leave run.sharding out"),
        (2, AskedSharding(1), "auto", "adamw", "expected 2 or more.*dp_shard_size"),
        (2, AskedSharding(2, cpu_offload=True), "auto", "adamw", "fsdp_offload_params.*false"),
        (2, AskedSharding(2, whole_state_dict=True), "auto", "adamw", "SHARDED_STATE_DICT"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_with_the_fix(
    count, launched, asked, optimizer, said, monkeypatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
    with pytest.raises(UserError, match=said):
        spread(processes(count, launched), asked, optimizer)


def test_where_nothing_asks_for_it_nothing_is_shared_out():
    one = processes(1)
    spread(one, "auto", "adafactor")
    assert not hasattr(one, "sharing")
