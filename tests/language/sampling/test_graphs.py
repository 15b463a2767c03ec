"""Steps that are captured and replayed, and functions that are compiled, where that is possible."""

import logging
from contextlib import contextmanager
from functools import partial
from shutil import which
from types import SimpleNamespace

import pytest
import torch

from lmpg.language.sampling.engines import cuda
from lmpg.language.sampling.engines.compiled import Compiled, compiled_kernels, gate
from lmpg.language.sampling.engines.cuda import CudaDecoder
from lmpg.language.sampling.engines.graphs import CudaGraphs, Replays, bucketed
from lmpg.language.sampling.sampler import engine_deviation
from tests.language.sampling.test_cpu_engine import policy


def test_the_first_step_of_a_shape_is_plain_the_second_captured_all_later_ones_replayed():
    log = []

    def capture(step):
        log.append("capture")
        return lambda: log.append("replay")

    capture.name = "list"
    replays = Replays(capture)
    for key in ("a", "b", "a", "a", "b"):
        replays(key, lambda key=key: log.append(key))
    assert log == ["a", "b", "capture", "replay", "replay", "capture", "replay"]
    replays.forget()
    replays("a", lambda: log.append("a"))
    assert log[-1] == "a"


def test_a_capture_that_fails_leaves_the_stream_that_was_in_use(monkeypatch):
    """What this class asks of torch.cuda, without a GPU."""
    streams, pools = ["usual"], []

    @contextmanager
    def graph(_, pool, capture_error_mode):
        pools.append(pool)
        streams.append("of the capture")
        yield
        streams.append("usual")

    for name, stand_in in {
        "graph_pool_handle": object,
        "CUDAGraph": lambda: SimpleNamespace(replay="replayed"),
        "current_stream": lambda: streams[-1],
        "set_stream": streams.append,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def failing():
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = CudaGraphs()
    assert graphs(lambda: None) == "replayed"
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs(failing)
    assert streams[-2:] == ["of the capture", "usual"]
    assert pools[0] is pools[1] is not None


def test_buckets_are_few_and_waste_less_than_a_third():
    found = [bucketed(n) for n in range(1, 1025)]
    assert sorted(set(found))[:9] == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert len(set(found)) == 20
    assert all(0 <= b - n < b / 3 for n, b in enumerate(found, 1))


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="compiling for a CPU takes a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_kernels_compute_the_same(monkeypatch):
    monkeypatch.setattr(cuda, "kernels_for", lambda _: compiled_kernels())
    for family in ("qwen3", "gpt2"):
        it = policy(family)
        assert engine_deviation(it, partial(CudaDecoder, rows=2)) < 1e-6
    assert not any(x.failed for x in vars(compiled_kernels()).values())


def test_a_function_that_cannot_be_compiled_is_called_as_it_is(monkeypatch, caplog):
    def no_compiler(*_):
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    kernel, x = Compiled(gate), torch.randn(3, 4)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(kernel(x, None, "relu"), x.relu())
    assert caplog.messages == ["sampling without compiling `gate`, because no compiler"]
    assert torch.equal(kernel(x, x, "relu"), x.relu() * x)
