"""Hints know the field's words: what a setting is called elsewhere."""

from __future__ import annotations

import re

import pytest

from lmpg.cli.main import methods, settings_class, settings_of
from lmpg.gym.settings import GYM_METHODS, gym_settings_class
from lmpg.settings.foreign_names import ABSENT, FOREIGN
from lmpg.settings.hints import did_you_mean, did_you_mean_setting, meant
from lmpg.settings.presets import preset_names
from lmpg.settings.raw import paths_of
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import ROOT


def known(method: str) -> list[str]:
    kind = gym_settings_class(method[4:]) if method.startswith("gym:") else settings_class(method)
    return list(paths_of(kind))


@pytest.fixture(scope="module")
def every_path():
    names = [*methods(), *(f"gym:{name}" for name in GYM_METHODS)]
    return {path for name in names for path in known(name)}


@catches("a hint to a setting that was renamed")
def test_every_setting_in_the_table_exists_and_no_entry_hides_one_of_ours(every_path):
    named = {path for paths in FOREIGN.values() for path in paths.split()}
    assert named - every_path == {"samples"}  # of lmpg generate and evaluate
    assert {name for name in FOREIGN if name in every_path} == set()


def test_every_entry_of_the_table_answers_users_of_some_method():
    kinds = [known(name) for name in ("ppo", "grpo", "dpo", "sft", "off_policy", "gym:ppo")]
    for name, paths in FOREIGN.items():
        assert any({*meant(name, kind)} & {*paths.split()} for kind in kinds), name


@catches("a hint by letters alone, as --update.lr → --update.anneal")
@pytest.mark.parametrize(
    ("method", "given", "hint"),
    [
        ("ppo", "--update.lr", "--update.learning-rate"),
        ("ppo", "--lr", "--update.learning-rate"),
        ("grpo", "--beta", "--algorithm.kl-coef"),
        ("dpo", "--beta", "--algorithm.beta"),
        ("dpo", "--algorithm.bta", "--algorithm.beta"),
        ("grpo", "--num-generations", "--algorithm.group-size"),
        ("grpo", "--num_generations", "--algorithm.group-size"),
        ("grpo", "--sampling.rollout-size", "--update.rollout-size"),
        ("grpo", "--eval-path", "--data.eval-path"),
        ("grpo", "--max-completion-length", "--sampling.max-new-tokens"),
        ("grpo", "--sampling.max-tokens", "--sampling.max-new-tokens"),
        ("dpo", "--max-tokens", "--evaluation.max-new-tokens"),
        ("sft", "--per-device-train-batch-size", "--update.microbatch-size"),
        ("sft", "--num-train-epochs", "--run.total-steps or --update.epochs"),
        ("ppo", "--actor_rollout_ref.actor.optim.lr", "--update.learning-rate"),
        ("ppo", "--critic.optim.lr", "--update.critic-learning-rate"),
        ("grpo", "--actor_rollout_ref.rollout.n", "--algorithm.group-size"),
        ("grpo", "--data.max_response_length", "--sampling.max-new-tokens"),
        ("ppo", "--trainer.test_freq", "--evaluation.every"),
        ("ppo", "--n_samples_per_prompt", None),
        ("ppo", "--path", "--model.path or --data.path or --environment.path"),
        ("gym:ppo", "--gae-lambda", "--algorithm.lam"),
        ("gym:ppo", "--n-envs", "--env.num-envs"),
        ("gym:ppo", "--total-timestep", "--run.total-timesteps"),
        ("ppo", "update.learnig_rate", "update.learning_rate"),
        ("ppo", "run.total_step", "run.total_steps"),
        ("ppo", "clip", "algorithm.clip"),
        ("ppo", "sampling.lam", "algorithm.lam"),
        ("ppo", "quux.zzz", None),
    ],
)
def test_the_setting_that_was_meant_is_named(method, given, hint):
    expected = f"did you mean {hint}?" if hint else ""
    assert did_you_mean_setting(given, known(method)) == expected


@catches("dropout of adapters answered by --model.lora.rank")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("--model.lora.dropout", "there is no dropout, as old and new log-probs would differ"),
        ("--lora_dropout", "there is no dropout"),
        ("model.lora.lora_dropout", "there is no dropout"),
        ("--sampling.logit-bias", "there are no logit biases, forbidden words or penalties"),
        ("--repetition-penalty", "there are no logit biases"),
        ("--sampling.num-beams", "there is none: policy gradients are learned from samples"),
        ("--model.load-in-8bit", "there is none: weights are kept in fp32, bf16 or 4 bits"),
        ("--attn-implementation", "there is none: transformers chooses"),
    ],
)
def test_what_there_is_not_is_refused_with_the_reason(name, said, every_path):
    assert not {*ABSENT} & {path.rpartition(".")[2] for path in every_path}
    if name.startswith("--"):
        with pytest.raises(UserError, match=f"unknown flag {name.replace('_', '-')} 0.1; {said}"):
            settings_of("grpo", [name, "0.1"])
    assert did_you_mean_setting(name, known("grpo")).startswith(said)


@catches("an environment for DPO answered by --model.path")
def test_an_environment_is_for_methods_that_take_turns():
    for name in ("dpo", "sft", "kto", "reward_model", "gym:ppo"):
        for given in ("--environment.path", "--environment.tools", "environment"):
            hint = did_you_mean_setting(given, known(name))
            assert hint.startswith("environments of text are for policy-gradient methods")
            assert ("env.id" in hint) == name.startswith("gym")
    assert did_you_mean_setting("--environment.pth", known("ppo")) == (
        "did you mean --environment.path?"
    )


def test_a_yaml_file_of_another_tool_is_answered_key_by_key(tmp_path):
    (tmp_path / "trl.yaml").write_text("learning_rate: 1.0e-6\nbeta: 0.04\nupdate: {lr: 1}\n")
    with pytest.raises(UserError) as error:
        settings_of("grpo", ["--config", str(tmp_path / "trl.yaml")])
    hints = [line.rpartition("; ")[2] for line in str(error.value).splitlines()]
    assert hints == [
        "did you mean update.learning_rate?",
        "did you mean algorithm.kl_coef?",
        "did you mean update.learning_rate?",
    ]


@catches("a page that names what a setting is not called elsewhere")
def test_a_misspelt_file_of_settings_is_answered_by_the_one_beside_it(tmp_path):
    (tmp_path / "sums.yaml").write_text("run: {total_steps: 2}\n")
    with pytest.raises(UserError, match=r"sum.yaml: No such file.*; did you mean sums.yaml\? exp"):
        settings_of("grpo", ["--config", str(tmp_path / "sum.yaml")])


def test_the_page_shows_what_the_table_says():
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \| `([a-z_.]+)`", page, re.M)
    assert len(rows) > 10
    for names, path in rows:
        for name in re.findall(r"`([a-z_.]+)`", names):
            kinds = [known(method) for method in ("ppo", "grpo", "gym:ppo")]
            assert any(path in meant(name, kind) for kind in kinds), name


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("gpro", "grpo"),
        ("PPO", "ppo"),
        ("Dr. GRPO", "dr_grpo"),
        ("REINFORCE++", "reinforce_plus_plus"),
        ("dr-grpo", "dr_grpo"),
    ],
)
def test_a_method_is_found_by_its_letters_whatever_its_case_and_signs(word, meant):
    assert did_you_mean(word, [*methods(), *preset_names()]) == f"did you mean {meant}? "
