"""All that is wrong with a command line is told at once, and nothing that follows from it."""

from __future__ import annotations

import sys

import pytest

from lmpg.cli.main import agent_settings, settings_of
from lmpg.cli.pipeline import pipeline
from lmpg.settings.section import UserError
from tests.support.planted import catches

NINE = "--update.rollout-size 9 --update.minibatch-size 9"
"""No multiple of algorithm.group_size, which is 8 by default."""


def problems(function) -> list[str]:
    with pytest.raises(UserError) as error:
        function()
    return str(error.value).splitlines()


@catches("only the first kind of error is told")
def test_names_values_combinations_and_paths_are_told_together(tmp_path):
    (tmp_path / "x.yaml").write_text("update: {epoch: 1}\nsampling: {top_k: 5}\n")
    words = (
        f"--lr 1 --config {tmp_path / 'x.yaml'} --update.adam-eps x --update.rollout-size 7 "
        "--run.seed 1 --run.seed 2 --model.path /no/model --data.path /no/data.jsonl "
        "--rewards.functions lenght nowhere.py:f --evaluation.every -1"
    )
    told = problems(lambda: settings_of("grpo", words.split()))
    beginnings = [
        f"{tmp_path / 'x.yaml'}: unknown setting update.epoch = 1; did you mean update.epochs?",
        "unknown flag --lr 1; did you mean --update.learning-rate?",
        "--run.seed stands there twice",
        "update.adam_eps = 'x': expected a valid number",
        "evaluation.every = '-1': expected greater than or equal to 0",
        "update.rollout_size = 7 is not a multiple of algorithm.group_size = 8",
        "sampling.top_k = 5, sampling.top_p = 1.0 with algorithm.name = grpo",
        "model.path = /no/model does not exist",
        "data.path: /no/data.jsonl doesn't exist",
        "rewards.functions: there is no built-in reward 'lenght'",
        "rewards.functions: the file nowhere.py",
    ]
    for line, beginning in zip(told, beginnings, strict=True):
        assert line.startswith(beginning), line


@catches("errors that vanish with those above them")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"--num-generations 3 {NINE}", 1),
        (f"--algorithm.group-size three {NINE}", 1),
        (NINE, 1),
        (f"{NINE} --update.epochs 0", 2),
        (f"{NINE} --update.rollout-size 7", 1),
        ("--config /nowhere.yaml --update.epochs 0", 2),
        ("--config --update.epochs 0", 2),
    ],
)
def test_what_follows_from_an_error_is_not_told(words, told):
    assert len(problems(lambda: settings_of("grpo", words.split()))) == told


@catches("the name of a run with - in place of _")
def test_a_run_that_stands_there_as_a_word_is_answered_with_its_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_run").mkdir()
    (told,) = problems(lambda: settings_of("grpo", ["my_run"]))
    assert told == "unexpected 'my_run'; a model, or a run that has one: --model.path my_run"


def test_several_checks_across_sections_are_told_together():
    words = "--model.path m --model.reference r --algorithm.kl-coef 0 --sampling.top-k 3"
    told = problems(lambda: settings_of("grpo", words.split()))
    assert any("data.path and rewards.functions or rewards.models missing" in x for x in told)
    assert any(
        x.startswith("model.reference = r, but algorithm.name = grpo compares") for x in told
    )
    assert any(x.startswith("sampling.top_k = 3") for x in told)


def test_an_agents_command_line_is_no_different():
    words = "--lr 1 --env.num-envs 3 --algorithm.gamma 2 --update.epochs no"
    told = problems(lambda: agent_settings(words.split()))
    assert [line.split(" ")[0] for line in told] == [
        "unknown",
        "algorithm.gamma",
        "update.epochs",
        "update.rollout_size",
    ]


def test_a_pipelines_stages_are_looked_at_together(tmp_path):
    words = (
        "sft dpo --lr 1 --dpo.algorithm.beta -1 --sft.update.epochs 0 --dpo.x 1 "
        f"--run.seed 1 --run.seed 2 --run.output-dir {tmp_path / 'out'} --data.path no.jsonl"
    )
    told = problems(lambda: pipeline(words.split()))
    for part in ("flag --lr 1; did you mean --update.l", "flag --dpo.x 1", "--run.seed stands"):
        assert sum(part in line for line in told) == 1
    assert "algorithm.beta = '-1': expected greater than 0" in told
    assert "update.epochs = '0': expected greater than or equal to 1" in told
    assert not (tmp_path / "out").exists()
    assert len(problems(lambda: pipeline(["sft", "dqo", "spo"]))) == 2


def test_packages_that_are_not_installed_are_told_before_any_model_is_loaded(tmp_path, monkeypatch):
    for package in ("bitsandbytes", "peft"):
        monkeypatch.setitem(sys.modules, package, None)
    words = "--update.optimizer adamw_8bit --model.quantisation nf4 --model.lora.rank 2"
    told = problems(lambda: settings_of("grpo", [*words.split(), "--model.path", "/no/model"]))
    asked = ("update.optimizer = adamw_8bit", "model.quantisation = nf4", "model.lora.rank")
    found = [next((x for x in told if x.startswith(f"{key} needs ")), "") for key in asked]
    assert ["which is not installed: pip install 'lmpg[" in x for x in found] == [True] * 3
