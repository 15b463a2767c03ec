"""The benchmarks: same work on both sides, turns in order, figures in the form that is promised."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.support.planted import catches

FOLDER = Path(__file__).parent.parent / "benchmarks"
PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from lockstep import Turn

turn = Turn()
for step in range(4):
    with open({log!r}, "a") as file:
        file.write({name!r} + str(step) + " ")
    turn(step=step)
print("told nobody")
"""


@pytest.fixture
def module(monkeypatch):
    """A module of the benchmarks by its name, which they import each other by."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@catches("a benchmark's rows end before their limit")
@pytest.mark.parametrize("size", ["S", "tiny"])
def test_special_tokens_are_never_sampled_and_words_hardly_change(module, size):
    models = module("models")
    ids = models.prompt_ids(size, 8, 40)
    with torch.no_grad():
        logits = models.random_model(size)(ids).logits
        usual = models.random_model(size, ends=True)(ids).logits
    assert logits.softmax(-1)[..., : len(models.SPECIAL)].max() < 1e-9
    entropies = [
        torch.distributions.Categorical(logits=x).entropy().mean() for x in (logits, usual)
    ]
    assert float(entropies[0]) == pytest.approx(float(entropies[1]), rel=0.01)


@pytest.mark.parametrize("size", ["S", "tiny"])
def test_prompts_have_the_length_that_is_asked_for_on_both_sides(module, size, tmp_path):
    models = module("models")
    folder = models.save(size, tmp_path)
    tokenizer = module("transformers").AutoTokenizer.from_pretrained(folder)
    found = tokenizer(models.prompts(size, 5, 12))["input_ids"]
    assert found == models.prompt_ids(size, 5, 12).tolist()


@catches(
    "programs measured while others run",
    "a program's first steps counted among the measured ones",
)
def test_programs_take_turns_step_by_step_and_the_first_are_not_counted(module, tmp_path):
    lockstep, log = module("lockstep"), tmp_path / "turns"
    programs = []
    for name in "ab":
        script = PROGRAM.format(folder=str(FOLDER), log=str(log), name=name)
        command = [sys.executable, "-c", script]
        programs.append(lockstep.Contestant(name, command, {}, tmp_path / f"{name}.log"))
    told = lockstep.race(programs, warm=2, counted=2)
    turns = log.read_text().split()
    assert set(turns[:2]) == {"a0", "b0"}  # all load at once
    assert turns[2:] == ["a1", "b1", "a2", "b2", "a3", "b3"]
    assert {name: [x["step"] for x in rows] for name, rows in told.items()} == {
        "a": [2, 3],
        "b": [2, 3],
    }
    assert all(x["seconds"] > 0 and x["cpu_seconds"] >= 0 for rows in told.values() for x in rows)
    assert (tmp_path / "a.log").read_text() == "told nobody\n"


def test_a_program_that_dies_is_named_with_what_it_said(module, tmp_path):
    lockstep = module("lockstep")
    command = [sys.executable, "-c", "print('out of order')"]
    program = lockstep.Contestant("broken", command, {}, tmp_path / "log")
    program.start()
    with pytest.raises(
        SystemExit, match="broken ended before its last step; it said:\nout of order"
    ):
        program.hear()
    program.finish()


@catches("the comparison takes the slower of the peer's settings")
def test_a_case_is_compared_with_the_faster_peer_and_fp32_with_fp32(module, monkeypatch):
    bench = module("bench_end_to_end")
    seconds = {"lmpg bf16": 1.0, "lmpg fp32": 2.0, "peer fp32": 5.0, "peer bf16": 4.0}
    seconds["peer bf16 eager"] = 3.5
    step = {"length": 64.0, "peak_gb": 1.0, "phases": {"time/sample": 0.5}}
    told = {name: [{**step, "seconds": x, "cpu_seconds": x}] * 3 for name, x in seconds.items()}
    monkeypatch.setattr(bench, "race", lambda *_: told)
    monkeypatch.setattr(bench, "step_seconds", lambda *_: 0.1)
    place = Namespace(size="M", shape={}, lmpg=lambda *_: None, peer=lambda *_: None)
    given = Namespace(warm=1, steps=3, peer_python="", peer_ppo_path="", length=64)
    rows = bench.measured("grpo", place, given)
    names = ("case", "size", "dtype", "seconds", "peer_seconds", "ratio")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("grpo", "M", "bf16", 1.0, 4.0, 4.0),
        ("grpo", "M", "fp32", 2.0, 5.0, 2.5),
    ]
    assert [row["ratio_to_fastest"] for row in rows] == [3.5, 1.75]
    assert "4.00x   3.50x" in bench.line(rows[0])


@catches("the ratio of two versions upside down")
def test_two_versions_do_the_same_and_the_faster_one_has_the_smaller_seconds(
    module, monkeypatch, tmp_path
):
    bench, sides = module("bench_versions"), module("sides")
    monkeypatch.setattr(sides, "Contestant", lambda *parts: Namespace(name=parts[0], parts=parts))
    raced = []

    def race(contestants, warm, steps):
        raced.extend(x.parts for x in contestants)
        return {x.name: [{"seconds": s, "cpu_seconds": s}] for x, s in zip(contestants, (2.0, 3.0))}

    monkeypatch.setattr(bench, "race", race)
    place = sides.Place(tmp_path, "tiny", 1, 1)
    line = bench.line("grpo", "fp32", place, Namespace(other=tmp_path, warm=1, steps=1))
    assert line.split() == ["grpo", "tiny", "fp32", "2.000", "3.000", "1.500", "1.500"]
    (mine, mine_command, mine_env, _), (other, other_command, other_env, _) = raced
    assert (mine, other) == ("lmpg fp32", "other fp32")
    assert other_env["PYTHONPATH"].startswith(str(tmp_path))
    assert mine_env != other_env
    different = [(a, b) for a, b in zip(mine_command, other_command) if a != b]
    assert len(different) == 2  # the program, and where the run's folder is


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_the_gpus_benchmark_says_so_and_exits_with_2(module, capsys):
    with pytest.raises(SystemExit) as ended:
        module("bench_gpu").main([])
    assert ended.value.code == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_the_gpus_benchmark_can_be_tried_on_the_cpu(module, tmp_path):
    words = "--size tiny --device cpu --responses 4 --prompt 5 --length 4 --repeats 1 --json"
    module("bench_gpu").main([*words.split(), str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["size"] == "tiny"
    assert 0 < found["decode"]["fraction"] < 1
    for size in ("tiny", "S"):
        exact = found[f"exact {size} fp32"]
        assert exact["deviation"] < 1e-5
        assert exact["same_tokens"] == exact["greedy"] == 1
        assert exact["again"]
        assert found[f"exact {size} bf16"]["mean"] < 0.02


def test_growth_measures_sampling_and_an_update_of_one_case(module):
    growth = module("bench_growth")
    case = {"size": "tiny", "batch": 8, "length": 4, "vocabulary": 300, "dtype": "fp32"}
    found = growth.case_figures(case, runs=1)
    assert found["sample_us"] > 0
    assert found["update_us"] > 0
    assert 0 < found["sample_of_floor"] < 1
    assert 0 < found["update_of_floor"] < 1
    row = growth.line("batch", 8, {**case, **found})
    assert len(row) == len(growth.HEADER)


def test_scaling_compares_what_is_sent_with_the_least_possible(module, monkeypatch):
    bench = module("bench_scaling")

    def started(command, env, **options):
        assert (env["WORLD_SIZE"], env["MASTER_ADDR"]) == ("4", "localhost")
        told = {"seconds": 1.0 + int(env["RANK"]), "cpu": 0.5, "sent": 33e6, "gradients": 20e6}
        return Namespace(communicate=lambda: (f"a warning\n{json.dumps(told)}\n", None))

    monkeypatch.setattr(bench.subprocess, "Popen", started)
    given = bench.arguments([])
    found = bench.figures(given, 4)
    assert found["of_least"] == pytest.approx(1.1)  # 2 · 3/4 · 20 MB are 30 MB
    row = bench.line(given, found, 8.0)
    assert len(row) == len(bench.HEADER)
    assert "4.00     2.00x" in row
    assert bench.bytes_sent() >= 0


def test_the_gym_benchmark_gives_the_first_sides_speed_in_that_of_the_others(module):
    bench = module("bench_gym")
    turns = {"lmpg": [0.5, 0.1, 0.2], "sb3": [0.6, 0.7, 9.0]}
    told = {
        name: [{"seconds": x, "cpu_seconds": x} for x in seconds] for name, seconds in turns.items()
    }
    mine, peer = bench.compared("zoo", told, size=256)
    assert (mine["per_second"], mine["ratio"]) == (256 / 0.2, 1.0)
    assert peer["ratio"] == pytest.approx(3.5)
    assert "3.50x" in bench.line(peer)


def test_runs_that_do_not_balance_are_counted_and_out_of_the_mean(module, monkeypatch, tmp_path):
    bench = module("bench_gym")
    told = iter([(2.0, 100), (12.0, 90), (None, 500), (4.0, 300), (None, 500), (8.0, 90)])

    def run(command, variables):
        seconds, steps = next(told)
        return {"seconds": seconds, "steps": steps}

    monkeypatch.setattr(bench, "seconds_to_475", run)
    mine, zoo, default = bench.to_475(Namespace(seeds=[0, 1], peer_python="p"), tmp_path)
    assert (mine["seconds"], mine["worst"], mine["failed"]) == (3.0, 4.0, 0)
    assert (zoo["failed"], zoo["seconds"], zoo["ratio"]) == (1, 12.0, 4.0)
    assert (default["failed"], default["ratio"]) == (1, pytest.approx(8 / 3))
    assert "1 of 2 failed" in bench.line(zoo)


@catches("the benchmark counts the untrained policy's evaluation")
def test_a_run_is_good_enough_after_three_good_evaluations_in_a_row(module, monkeypatch, capsys):
    clock = module("gym_steps").Clock()
    means = iter([500, 480, 490, 474, 475, 499, 500])  # the first is that of the untrained policy
    clock.evaluate = lambda _: {"return_mean": next(means)}
    clock.stop_reason = lambda *_: None
    source = Namespace(runner=Namespace(num_steps=6144))
    monkeypatch.setattr(module("gym_steps").GymSource, "evaluate", None)
    monkeypatch.setattr(module("gym_steps").GymSource, "stop_reason", None)
    clock.hang()
    patched, ended = module("gym_steps").GymSource, []
    for step in range(7):
        patched.evaluate(source)
        ended.append(patched.stop_reason(source, step))
    assert ended == [None] * 6 + ["it is good enough"]
    found = json.loads(capsys.readouterr().out)["found"]
    assert (found["steps"], found["means"]) == (6144, [480, 490, 474, 475, 499, 500])
    assert 0 <= found["seconds"] < 1


@pytest.mark.slow
def test_the_gym_benchmark_can_be_tried_without_its_peer(module, tmp_path):
    words = "--quick --cases zoo threads --json"
    module("bench_gym").main([*words.split(), str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["zoo", "threads", "threads"]
    assert all(row["per_second"] > 0 for row in rows)
