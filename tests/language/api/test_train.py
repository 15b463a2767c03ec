"""`lmpg.train` gives what the command line gives, from objects of Python."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM

import lmpg
from lmpg.runs import checkpoint
from tests.support.planted import catches
from tests.support.programs import REWARD, SMALL, outcome, own_parts, run_here
from tests.support.tiny import tiny_model, tiny_tokenizer

ROWS = [{"prompt": "abc de fghi jkl"[: 1 + 5 * i % 14], "number": i} for i in range(40)]


def sections(flags: dict[str, Any] = SMALL, **more: Any) -> dict[str, dict[str, Any]]:
    """Flags as the keyword arguments of `lmpg.train`."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in {**flags, **more}.items():
        section, _, leaf = name.replace("-", "_").partition(".")
        found.setdefault(section, {})[leaf] = value
    return found


def letters(completions, number):
    """The reward of `own_parts`, as a function of this module."""
    scores = [completion.count("a") - len(completion) / 20 for completion in completions]
    return [None if n % 7 == 3 else score for n, score in zip(number, scores)]


def closure():
    """The same as a closure, which no worker can import."""
    scored = letters

    def letters_(completions, number):
        return scored(completions, number)

    letters_.__name__ = "letters"
    return letters_


@pytest.fixture(scope="module")
def by_command(tmp_path_factory) -> dict[str, Any]:
    """What the command line's run leaves, with all its parts in files."""
    folder = tmp_path_factory.mktemp("command")
    parts = own_parts(folder)
    flags = {**parts, "algorithm.group-size": 2, "run.output-dir": folder / "run"}
    return outcome(run_here("grpo", flags))


def trained(folder: Path, **changes: Any) -> lmpg.Run:
    """The same run from Python, with all its parts in memory."""
    return lmpg.train(
        "grpo",
        **{
            "model": tiny_model(),
            "tokenizer": tiny_tokenizer(),
            "data": ROWS,
            "rewards": closure(),
            **sections({**SMALL, "algorithm.group-size": 2, "run.output-dir": folder}),
            **changes,
        },
    )


def test_a_model_a_dataset_and_a_closure_give_the_run_of_the_command_line_bit_for_bit(
    by_command, tmp_path
):
    model = tiny_model()
    start = {name: x.clone() for name, x in model.state_dict().items()}
    run = trained(tmp_path / "run", model=model, data=datasets.Dataset.from_list(ROWS))
    assert outcome(run.folder) == by_command
    assert all(torch.equal(x, start[name]) for name, x in model.state_dict().items())


def test_a_data_frame_and_a_function_of_a_module_do_too(by_command, tmp_path, monkeypatch):
    (tmp_path / "letters_of_a_module.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("letters_of_a_module").letters
    run = trained(tmp_path / "run", data=pandas.DataFrame(ROWS), rewards=[function])
    assert run.settings["rewards"]["functions"] == ["letters_of_a_module:letters"]
    assert outcome(run.folder) == by_command


def test_a_run_knows_what_it_has_made(tmp_path):
    run = trained(tmp_path / "run")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").state_dict()
    assert all(torch.equal(x, plain[name]) for name, x in run.model.state_dict().items())
    assert run.tokenizer.decode(run.tokenizer("abc").input_ids) == "abc"
    assert [row["step"] for row in run.metrics] == run.metrics.column("step") == [1, 2, 3]
    assert run.samples[0].keys() >= {"step", "prompt", "completion", "score"}
    assert run.summary["exit_reason"] == "finished"
    assert repr(run) == f"Run('{tmp_path}/run', finished after 3 steps)"
    assert Path(run.report()) == tmp_path / "run" / "report.html"
    again = lmpg.load(str(run.folder))
    assert (again.summary, again.metrics) == (run.summary, run.metrics)
    with pytest.raises(lmpg.UserError, match="no column 'rewrd'; did you mean reward"):
        run.metrics.column("rewrd")
    with pytest.raises(lmpg.UserError, match=f"holds no run of lmpg.*did you mean {run.folder}"):
        lmpg.load(run.folder / "final")
    with pytest.raises(lmpg.UserError, match="it is the folder of a run, whose model lies in"):
        trained(tmp_path / "other", model=str(run.folder), tokenizer=None)


def test_a_run_goes_on_in_the_next_as_its_model_and_its_reward(tmp_path):
    pairs = [{"prompt": "abc", "chosen": "de" * i, "rejected": "f"} for i in range(1, 12)]
    short = {"data": {"path": pairs}, "tokenizer": tiny_tokenizer()}
    where = {"run": {"output_dir": str(tmp_path / "judge"), "total_steps": 1}}
    judge = lmpg.train("reward_model", model=tiny_model(), **short, **where)
    first = trained(tmp_path / "first")
    second = trained(tmp_path / "second", model=first, tokenizer=None, rewards=[judge, closure()])
    assert second.settings["model"]["path"] == str(first.model_path)
    assert second.settings["rewards"]["models"] == [str(judge.model_path)]


def test_the_settings_of_a_run_are_those_of_another_call(tmp_path):
    first = trained(tmp_path / "first")
    settings = {k: x for k, x in first.settings.items() if k not in ("model", "data", "rewards")}
    settings["run"]["output_dir"] = str(tmp_path / "second")
    assert trained(tmp_path / "second", **settings).metrics.column("reward") == (
        first.metrics.column("reward")
    )


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(lmpg.UserError, match="holds no run of lmpg, expected a folder"):
        lmpg.load(tmp_path)
    (tmp_path / "config.yaml").write_text("env: {id: CartPole-v1}")
    with pytest.raises(lmpg.UserError, match=r"load it with lmpg\.gym\.load"):
        lmpg.load(tmp_path)


def test_on_step_hears_of_each_step_and_may_end_the_run(tmp_path):
    heard = []

    def on_step(step, metrics):
        heard.append((step, metrics["reward"]))
        return "stop" if step == 2 else None

    run = trained(tmp_path / "run", on_step=on_step)
    assert heard == [(row["step"], row["reward"]) for row in run.metrics]
    assert [step for step, _ in heard] == [1, 2]
    assert run.summary["exit_reason"] == "finished"
    assert run.model_path.is_dir()


def test_what_on_step_raises_ends_the_run_saved_and_is_raised(tmp_path):
    def on_step(step, metrics):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        trained(tmp_path / "run", on_step=on_step)
    assert checkpoint.newest_step(tmp_path / "run" / "checkpoints") == 1
    assert trained(tmp_path / "run", **resumed(tmp_path / "run")).summary["steps"] == 3


def resumed(folder: Path) -> dict[str, Any]:
    """The section `run` that goes on in a folder."""
    return {"run": {**sections()["run"], "output_dir": folder, "resume": True}}


@catches("other data or another model written over those that a run began with")
def test_a_run_with_everything_in_memory_is_resumed_by_the_same_call(by_command, tmp_path):
    stop = {"on_step": lambda step, metrics: 1 / 0}
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "run", **stop)
    go_on, given = resumed(tmp_path / "run"), tmp_path / "run" / "given"
    kept = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    for other, key in [
        ({"data": ROWS[1:]}, "data.jsonl"),
        ({"model": tiny_model(seed=1)}, "model/model.safetensors"),
        ({"rewards": lambda completions: [1.0] * len(completions)}, "rewards.functions"),
    ]:
        with pytest.raises(lmpg.UserError) as refused:
            trained(tmp_path / "run", **go_on, **other)
        assert key in str(refused.value)
        assert kept == {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    run = trained(tmp_path / "run", **go_on)
    assert outcome(run.folder) == by_command


def test_the_command_line_resumes_a_run_whose_model_and_data_were_in_memory(by_command, tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    reward = f"{tmp_path / 'reward.py'}:letters"
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "run", rewards=reward, on_step=lambda step, metrics: 1 / 0)
    flags = {"config": tmp_path / "run/config.yaml", "run.output-dir": tmp_path / "run"}
    assert outcome(run_here("grpo", {**flags, "run.resume": True})) == by_command


def test_wrong_settings_are_answered_as_on_the_command_line(tmp_path):
    for wrong, said in [
        ({"update": {"learning_rat": 1}}, "train: unknown setting update.learning_rat = 1; did"),
        ({"learning_rate": 1}, "train: unknown setting learning_rate = 1; did you mean update"),
        ({"update": {"learning_rate": -1}}, "update.learning_rate = -1: expected"),
        ({"update": 3}, "train: update = 3, expected a section with keys such as update."),
        ({"rewards": "exakt_match"}, "there is no built-in reward 'exakt_match'. Did you mean"),
        ({"rewards": "nowhere/model/x"}, "rewards.models = nowhere/model/x does not exist"),
        ({"rewards": 3}, "rewards holds a int, expected a function, a function's name"),
        ({"rewards": lambda answers: []}, "lambda has a parameter 'answers', but the data has no"),
        ({"data": 3}, "data is a int, expected a path, a Hub id, a datasets.Dataset"),
        ({"data": ["abc"]}, r"data[0] is a str, expected a path"),
        ({"data": [{"prompt": {1, 2}}]}, "data[0]: the column 'prompt' holds a set, expected"),
        ({"model": 3}, "model.path is a int, expected a folder, a Hub id, or a model"),
        ({"tokenizer": None}, "model.path is a LlamaForCausalLM in memory, expected its tokenizer"),
        ({"on_step": 3}, "on_step is a int, expected a function"),
    ]:
        with pytest.raises(lmpg.UserError) as refused:
            trained(tmp_path / "run", **wrong)
        assert said in str(refused.value)
        assert not (tmp_path / "run").exists()
    with pytest.raises(lmpg.UserError, match="unknown method 'grop'; did you mean grpo"):
        lmpg.train("grop")
    with pytest.raises(
        lmpg.UserError, match="unknown section rewards; expected one of model, data"
    ):
        lmpg.train("sft", rewards=letters)
    with pytest.raises(lmpg.UserError, match=r"algorithm\.name = 'ppo', but .* is grpo; call lmpg"):
        lmpg.train("grpo", algorithm={"name": "ppo"})
