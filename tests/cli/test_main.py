"""What `lmpg train NAME` makes of a name, a file and the user's own parts."""

from __future__ import annotations

import pytest

from lmpg.algorithms.ppo import PPO
from lmpg.cli.command import run
from lmpg.cli.main import agent_settings, settings_of
from lmpg.language.settings import LanguageSettings
from lmpg.language.stages.settings import RewardModelSettings, SftSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches

OWN = ["--model.path", "m", "--data.path", "d", "--rewards.functions", "f.py:f"]


@catches("a rollout is used for several steps by a loss without ratios")
@pytest.mark.parametrize(("name", "steps"), [("rloo", 1), ("remax", 1), ("ppo", 4), ("grpo", 1)])
def test_a_rollout_of_ones_own_model_is_used_again_only_where_ratios_allow(name, steps):
    update = settings_of(name, OWN).update
    assert update.epochs * update.rollout_size // update.minibatch_size == steps
    assert settings_of(name, [*OWN, "--update.epochs", "3"]).update.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algorithm:\n  name: dapo\n", "name = dapo is a preset.*run `lmpg train dapo --config"),
        ("algorithm:\n  name: 7\n", "unknown method '7'"),
        ("algorithm: ppo\n", "expected a method to train with"),
        ("model: {}\n", "expected a method to train with"),
    ],
)
def test_a_file_without_the_name_of_an_algorithm_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        run(["train", "--config", str(path)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--algorithm.kl-target 3 --algorithm.kl-coef 0", r"kl_target = 3\.0 with algorithm\.kl_c"),
        ("--algorithm.penalty-target 0.1", r"target = 0\.1 with algorithm\.penalty_coef = 0"),
        ("--algorithm.clip none --algorithm.clip-high 0.3", r"= 0\.3 with algorithm\.clip = none"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        settings_of("ppo", flags.split())


def test_a_penalty_is_steered_only_where_its_kl_can_be_measured():
    flags = "--algorithm.penalty-coef 1 --algorithm.penalty-target 0.01 --update.rollout-size 32"
    once = [*OWN, *flags.split(), "--update.minibatch-size", "32", "--update.epochs"]
    with pytest.raises(UserError, match="with one optimizer step per rollout"):
        settings_of("ppo", [*once, "1"])
    assert settings_of("ppo", [*once, "2"]).update.epochs == 2


@pytest.mark.parametrize("settings", [SftSettings, RewardModelSettings, LanguageSettings[PPO]])
def test_all_settings_have_a_description(settings):
    def descriptions(section):
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from descriptions(field.annotation)
            else:
                yield name, field.description

    assert [name for name, text in descriptions(settings) if not text] == []


@pytest.mark.parametrize("flag", ["ratio=sequence", "ratio=decision", "reduction=sequence_mean"])
def test_single_environment_steps_know_no_episode(flag):
    name, value = flag.split("=")
    given = ["--algorithm.name", "off_policy", "--algorithm.kl-coef", "0", f"--algorithm.{flag}"]
    with pytest.raises(UserError, match=rf"algorithm\.{name} = {value}, but environment steps"):
        agent_settings(given)
