"""Bad input is refused before training: exit code 2, one readable message, no folder left over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmpg.cli.main import main, train_agent
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import launched, let_go, own_parts, run_here, words
from tests.support.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return own_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def flags(parts, tmp_path):
    return {**parts, "run.total-steps": 1, "run.output-dir": tmp_path / "run"}


def refusal(function, capsys) -> str:
    """What is said on stderr by a program that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        main(function)
    assert ending.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return " ".join(said.split())


def data_of(text: str):
    """A way to spoil the flags: another data file."""

    def spoil(flags, folder: Path) -> dict:
        (folder / "spoiled.jsonl").write_text(text)
        return {"data.path": folder / "spoiled.jsonl"}

    return spoil


def rows_of(*rows: dict):
    return data_of("".join(json.dumps(row) + "\n" for row in rows))


def reward_of(text: str):
    """A way to spoil the flags: another reward file."""

    def spoil(flags, folder: Path) -> dict:
        (folder / "spoiled.py").write_text(text)
        return {"rewards.functions": f"{folder / 'spoiled.py'}:letters"}

    return spoil


def without_eos(flags, folder: Path) -> dict:
    for file in flags["model.path"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tiny_tokenizer(eos=False).save_pretrained(folder)
    return {"model.path": folder}


def output_in_a_file(flags, folder: Path) -> dict:
    (folder / "file").write_text("")
    return {"run.output-dir": folder / "file" / "run"}


def config_of(text: str):
    def spoil(flags, folder: Path) -> dict:
        (folder / "spoiled.yaml").write_text(text)
        return {"config": folder / "spoiled.yaml"}

    return spoil


REFUSED = {  # what is wrong: algorithm, what is changed (None takes a flag away), what is said
    "misspelt flag": (
        "ppo",
        {"update.learnig-rate": 0.1},
        ["--update.learnig-rate 0.1", "did you mean --update.learning-rate?"],
    ),
    "misspelt key in YAML": (
        "ppo",
        config_of("update:\n  learnig_rate: 0.1\n"),
        ["spoiled.yaml", "update.learnig_rate = 0.1", "did you mean update.learning_rate?"],
    ),
    "value out of range": (
        "ppo",
        {"update.learning-rate": -1},
        ["update.learning_rate = '-1'", "greater than 0"],
    ),
    "value of another type": (
        "ppo",
        {"update.epochs": "many"},
        ["update.epochs = 'many'", "expected", "integer"],
    ),
    "missing model": (
        "ppo",
        {"model.path": "/nowhere/model"},
        ["model.path = /nowhere/model does not exist", "expected a folder", "or a Hub id"],
    ),
    "missing data file": (
        "ppo",
        {"data.path": "/nowhere/prompts.jsonl"},
        ["data.path", "/nowhere/prompts.jsonl", "exist"],
    ),
    "missing column": (
        "ppo",
        rows_of({"question": "why"}),
        ["data.prompt_column", "no column 'prompt'", "question", "--data.prompt-column question"],
    ),
    "empty dataset": ("ppo", data_of(""), ["data.path", "spoiled.jsonl", "empty", "at least one"]),
    "overlong prompt": (
        "ppo",
        rows_of(*[{"prompt": "a" * 60, "number": 1}] * 10),
        ["row 1", "60 tokens", "52", "--data.overlong skip"],
    ),
    "context without room": (
        "ppo",
        {"sampling.max-new-tokens": 64},
        ["context", "--sampling.max-new-tokens"],
    ),
    "broken line of JSON": (
        "ppo",
        data_of('{"prompt": "a"}\n{"prompt": \n'),
        ["data.path", "line 2", "JSON", '{"prompt":', "Fix or delete that line"],
    ),
    "model without EOS": ("ppo", without_eos, ["model.path", "EOS", "tokenizer.eos_token ="]),
    "no reward": (
        "ppo",
        {"rewards.functions": None},
        ["model.path = ", "rewards.functions or rewards.models missing"],
    ),
    "no data": ("ppo", {"data.path": None}, ["model.path = ", "data.path missing"]),
    "missing reward file": (
        "ppo",
        {"rewards.functions": "/nowhere/reward.py:letters"},
        ["rewards.functions", "/nowhere/reward.py", "exist"],
    ),
    "reward that does not import": (
        "ppo",
        reward_of("import a_module_that_is_not_there as letters\n"),
        ["rewards.functions", "cannot import", "a_module_that_is_not_there"],
    ),
    "misspelt reward function": (
        "ppo",
        reward_of("def leters(completions):\n    return [0.0 for c in completions]\n"),
        ["rewards.functions", "no function or class 'letters', expected one of leters; write"],
    ),
    "reward that asks for a missing column": (
        "ppo",
        reward_of("def letters(completions, answer):\n    return [0.0 for c in completions]\n"),
        ["rewards.functions", "'answer'", "prompt, number"],
    ),
    "reward that never answers with a number": (
        "ppo",
        reward_of("def letters(completions):\n    return ['good' for c in completions]\n"),
        ["before training", "Mend the reward", "without a score: it returned a str among"],
    ),
    "group of one": (
        "grpo",
        {"algorithm.group-size": 1},
        ["algorithm.group_size = '1'", "greater than or equal to 2"],
    ),
    "groups that do not divide": (
        "grpo",
        {"algorithm.group-size": 3},
        ["update.rollout_size = 8", "algorithm.group_size = 3", "divisor of 8"],
    ),
    "minibatches that do not divide": (
        "ppo",
        {"update.minibatch-size": 3},
        ["update.rollout_size = 8", "update.minibatch_size = 3", "divisor of 8"],
    ),
    "unwritable folder": ("ppo", output_in_a_file, ["run.output_dir = ", "cannot be written"]),
}


@catches("the folder of a refused command is kept")
@pytest.mark.parametrize("wrong", REFUSED)
def test_bad_input_is_refused_by_name_and_leaves_nothing_behind(wrong, flags, tmp_path, capsys):
    algorithm, changed, expected = REFUSED[wrong]
    (tmp_path / "spoiled").mkdir()
    changed = changed(flags, tmp_path / "spoiled") if callable(changed) else changed
    given = {name: value for name, value in {**flags, **changed}.items() if value is not None}
    said = refusal(lambda: run_here(algorithm, given), capsys)
    assert [part for part in expected if part not in said] == [], said
    assert not (tmp_path / "run").exists()


@catches("a reference and a teacher are looked for only after the policy is loaded")
@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("ppo", "model.reference"),
        ("dpo", "model.reference"),
        ("kto", "model.reference"),
        ("distillation", "model.teacher"),
    ],
)
def test_other_models_are_looked_for_before_anything_is_loaded(method, key, flags, monkeypatch):
    monkeypatch.setattr("lmpg.language.program.train_language", None)
    monkeypatch.setattr("lmpg.language.stages.program.train_stage", None)
    of_policy = {k: flags[k] for k in ("model.path", "data.path", "run.output-dir")}
    rewards = {"rewards.functions": "length"} if method == "ppo" else {}
    with pytest.raises(UserError, match=f"{key} = /nowhere/model does not exist, expected a"):
        run_here(method, {**of_policy, **rewards, key: "/nowhere/model"})


@catches("reward functions and rows are looked at only once the model is loaded")
@pytest.mark.parametrize(
    "wrong",
    [
        "missing column",
        "empty dataset",
        "broken line of JSON",
        "reward that does not import",
        "reward that asks for a missing column",
    ],
)
def test_data_and_rewards_are_looked_at_before_a_model_is_loaded(
    wrong, flags, tmp_path, monkeypatch
):
    monkeypatch.setattr("lmpg.language.program.policy_for", None)
    with pytest.raises(UserError) as refused:
        run_here("ppo", {**flags, **REFUSED[wrong][1](flags, tmp_path)})
    assert [x for x in REFUSED[wrong][2] if x not in str(refused.value)] == []


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward_model"])
def test_the_data_of_a_stage_are_read_before_its_model_is_loaded(
    stage, flags, tmp_path, monkeypatch
):
    for module in ("prepared", "reward_modelling"):
        monkeypatch.setattr(f"lmpg.language.stages.{module}.loaded", None)
    _, spoil, said = REFUSED["broken line of JSON"]
    given = {k: flags[k] for k in ("model.path", "run.output-dir")} | spoil(flags, tmp_path)
    with pytest.raises(UserError) as refused:
        run_here(stage, given)
    assert [x for x in said if x not in str(refused.value)] == []


def test_after_a_refusal_the_corrected_command_runs_in_the_same_folder(flags, capsys):
    bad = {**flags, "rewards.functions": "/nowhere/reward.py:letters"}
    refusal(lambda: run_here("ppo", bad), capsys)
    folder = run_here("ppo", flags)
    said = refusal(lambda: run_here("ppo", flags), capsys)
    assert f"run.output_dir = {folder} holds another run" in said
    assert "--run.resume" in said
    changed = {**flags, "run.resume": True, "run.total-steps": 2, "update.epochs": 1}
    said = refusal(lambda: run_here("ppo", changed), capsys)
    assert "update.epochs = 1, but the run in" in said
    assert "run.total_steps =" not in said
    assert run_here("ppo", {**changed, "update.epochs": 2}) == folder


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"env.id": "CartPole-v7"}, ["env.id", "CartPole-v7", "CartPole-v1"]),
        ({"algorithm.name": "pop"}, ["algorithm.name", "pop", "ppo"]),
        ({"env.num-envs": 3}, ["update.rollout_size", "env.num_envs = 3"]),
    ],
)
def test_agents_are_refused_likewise(changed, expected, tmp_path, capsys):
    flags = words({"run.output-dir": tmp_path / "run", **changed})
    said = refusal(lambda: train_agent(flags), capsys)
    let_go()
    assert [part for part in expected if part not in said] == [], said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_script_says_what_is_wrong_in_one_line_and_ends_with_2(parts):
    done = launched("scripts/train_grpo.py", *words({**parts, "algorithm.group-sise": 4}))
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown flag --algorithm.group-sise 4; did you mean --algorithm.group-size?\n"
    )
