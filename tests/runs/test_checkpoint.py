"""Checkpoints come back bit for bit, whole or not at all."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lmpg.runs import checkpoint, files
from tests.support.planted import catches

STATE = {
    "policy": {"weight": torch.arange(6.0).view(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.randn(4)}, 7: {"step": 1}}},
    "numbers": [0.1 + 0.2, 1e-300, -0.0, math.inf, -math.inf, 2**77, True, None, "ε"],
    "__odd__": {"__tensor__": "no tensor", "pair": (1, (2.5, "x"))},
}


def same(a, b) -> bool:
    """Equal in type, value and bits; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def round_trip(folder: Path, state):
    checkpoint.save(folder, 1, state, keep=2)
    return checkpoint.newest(folder)[1]


@catches("integer keys of a checkpoint come back as strings")
def test_a_state_comes_back_exactly(tmp_path):
    assert same(STATE, round_trip(tmp_path / "checkpoints", STATE))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_every_dtype_and_shape_comes_back_exactly(tmp_path, dtype, shape):
    x = (torch.rand(shape) * 3).to(dtype)
    assert same(x, round_trip(tmp_path, {"x": x})["x"])


def test_nan_comes_back_in_numbers_and_tensors(tmp_path):
    state = round_trip(tmp_path, {"number": math.nan, "tensor": torch.tensor([math.nan, 1.0])})
    assert math.isnan(state["number"])
    assert state["tensor"].isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["uint32", "uint64", "float64", "int64", "bool"])
def test_numpy_arrays_come_back_exactly(tmp_path, dtype):
    x = np.arange(5).astype(dtype)
    assert same(x, round_trip(tmp_path, {"x": x})["x"])


def test_a_numpy_generator_goes_on_where_it_was(tmp_path):
    generator = np.random.Generator(np.random.PCG64(3))
    state = round_trip(tmp_path, {"rng": generator.bit_generator.state})["rng"]
    expected = generator.random(5)
    generator.bit_generator.state = state
    assert np.array_equal(generator.random(5), expected)


@catches("overlapping views handed to safetensors as they are")
def test_views_and_transposes_are_saved_without_the_storage_behind_them(tmp_path):
    big = torch.arange(100_000.0).view(100, 1000)
    state = {"rows": big[3:5], "overlap": big[4:6], "transposed": big[:4, :3].T, "again": big[3:5]}
    assert same(state, round_trip(tmp_path, state))
    assert (tmp_path / "step_1" / "tensors.safetensors").stat().st_size < 30_000


def test_a_tied_weight_is_saved_once_and_comes_back_tied(tmp_path):
    x = torch.randn(50)
    state = round_trip(tmp_path, {"a": x, "b": x.view(50)})
    assert state["a"].data_ptr() == state["b"].data_ptr()


def test_training_goes_on_bit_for_bit_from_a_checkpoint(tmp_path):
    def trained(steps, state=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    assert same(trained(5), trained(2, round_trip(tmp_path, trained(3))))


def test_something_that_is_no_state_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a\[1\] is a set"):
        checkpoint.save(tmp_path, 1, {"a": [1, {2}]}, keep=1)
    assert checkpoint.newest(tmp_path) is None


def saved(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        checkpoint.save(folder, step, {"step": step, "x": torch.full((1000,), step)}, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_and_older_ones_deleted(tmp_path):
    saved(tmp_path, 9, 10, 11, 100)
    assert names(tmp_path) == ["step_100", "step_11"]
    assert checkpoint.newest(tmp_path)[0] == checkpoint.newest_step(tmp_path) == 100


def test_without_checkpoints_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "missing") is None
    assert checkpoint.newest_step(tmp_path) is None


def cut_short(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@catches("a checkpoint's checksum not compared")
@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("tear", [cut_short, flip_a_bit, Path.unlink])
def test_a_torn_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, file, tear):
    saved(tmp_path, 10, 20)
    tear(tmp_path / "step_20" / file)
    with caplog.at_level(logging.WARNING):
        step, state = checkpoint.newest(tmp_path)
    assert (step, state["step"]) == (10, 10)
    assert "step_20 is not whole" in caplog.text


def test_a_torn_checkpoint_of_the_same_step_is_replaced(tmp_path):
    saved(tmp_path, 10, 20)
    cut_short(tmp_path / "step_20" / "state.json")
    saved(tmp_path, 20)
    assert checkpoint.newest(tmp_path)[0] == 20


@catches("torn checkpoints of an abandoned future count among those kept")
def test_torn_checkpoints_of_an_abandoned_future_do_not_push_out_whole_ones(tmp_path):
    saved(tmp_path, 10, 50, 60)
    for step in (50, 60):
        cut_short(tmp_path / f"step_{step}" / "tensors.safetensors")
    saved(tmp_path, 20, keep=1)
    assert names(tmp_path) == ["step_20"]
    assert checkpoint.newest(tmp_path)[0] == 20


def test_half_written_folders_are_ignored_and_swept_away(tmp_path):
    saved(tmp_path, 10)
    (tmp_path / ".tmp-step_20-123").mkdir()
    (tmp_path / ".tmp-step_20-123" / "state.json").write_text("{")
    assert checkpoint.newest(tmp_path)[0] == 10
    saved(tmp_path, 30)
    assert names(tmp_path) == ["step_10", "step_30"]


def test_old_checkpoints_outlive_a_failed_save(tmp_path, monkeypatch):
    saved(tmp_path, 10, keep=1)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        saved(tmp_path, 20, keep=1)
    assert checkpoint.newest(tmp_path)[0] == 10


@catches("checkpoint written in place, without fsync, or its rename not flushed")
def test_every_file_is_flushed_before_the_rename(tmp_path, monkeypatch):
    events = []
    for module in (checkpoint, files):
        monkeypatch.setattr(module, "fsync", lambda path: events.append(path.name))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    saved(tmp_path / "checkpoints", 10)
    before = events[: events.index("rename")]
    assert {"tensors.safetensors", "state.json", "manifest.json"} < set(before)
    assert before[-1].startswith(".tmp-step_10")
    assert events[events.index("rename") + 1 :] == ["checkpoints", tmp_path.name]


def test_no_file_holds_a_pickle(tmp_path):
    checkpoint.save(tmp_path, 1, STATE, keep=1)
    files = sorted((tmp_path / "step_1").iterdir())
    assert [f.name for f in files] == ["manifest.json", "state.json", "tensors.safetensors"]
    json.loads((tmp_path / "step_1" / "state.json").read_text())


def write_until_killed(folder: Path, told: int) -> None:
    """Checkpoints one after the other, each told to a descriptor when it is there."""
    for step in range(1, 10**6):
        state = {"step": step, "x": [torch.full((20000,), float(step)) for _ in range(4)]}
        checkpoint.save(folder, step, state, keep=2)
        os.write(told, f"{step}\n".encode())


@pytest.mark.slow
def test_kill_9_at_any_instant_leaves_the_last_or_the_one_before(tmp_path):
    fork = multiprocessing.get_context("fork")
    for delay in (0.0, 0.003, 0.007, 0.013, 0.031):
        folder = tmp_path / str(delay)
        reading, writing = os.pipe()
        process = fork.Process(target=write_until_killed, args=(folder, writing))
        process.start()
        os.close(writing)
        with os.fdopen(reading) as lines:
            told = [int(lines.readline()) for _ in range(3)]
            time.sleep(delay)
            process.kill()
            told += [int(line) for line in lines.read().split("\n")[:-1]]
        process.join()
        assert process.exitcode == -signal.SIGKILL
        step, state = checkpoint.newest(folder)
        assert step in (told[-1], told[-1] + 1)
        assert state["step"] == step
        assert all(torch.equal(x, torch.full((20000,), float(step))) for x in state["x"])
