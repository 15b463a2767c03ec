"""Settings that explode, that are no numbers, or that no path can hold, are refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmpg.algorithms.ppo import PPO
from lmpg.cli.main import settings_of
from lmpg.language.settings import LanguageSettings
from lmpg.settings.raw import defaults_of, merged, validated
from lmpg.settings.section import UserError
from lmpg.settings.yaml_files import read_yaml
from tests.support.planted import catches

Settings = LanguageSettings[PPO]


def built(**sections):
    return validated(Settings, merged(defaults_of(Settings), sections))


@catches("aliases that stand for billions of values")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a0: &a0 [x, x]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
            "more than 10000 values once its aliases",
        ),
        ("a: &a [*a]", "more than 10000 values"),
        ("a: " + "1" * 5000, "a value can't be read"),
        ("a: 0x" + "f" * 5000, "a value can't be written"),
        ("a: 2020-13-45", r"a value can't be read \(month must be"),
        ("a: !!timestamp 20", "a value can't be read"),
        ("a: " + "[" * 3000, "a value can't be read"),
    ],
)
def test_yaml_that_explodes_or_holds_no_value_is_refused(tmp_path, text, said):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"a\.yaml: .*{said}"):
        read_yaml(path)


@catches("inf and nan taken as settings")
@pytest.mark.parametrize("value", [float("inf"), "-inf", "nan", "1e999"])
def test_no_setting_is_infinite_or_nan(value):
    for section, key in (("update", "learning_rate"), ("algorithm", "kl_coef")):
        with pytest.raises(UserError, match=rf"{section}.{key} = .*expected a finite number"):
            built(**{section: {key: value}})


def test_a_text_with_nul_is_refused_by_the_name_of_its_setting():
    with pytest.raises(UserError, match=r"^model.path = 'a\\x00b' holds a NUL character"):
        built(model={"path": "a\0b"})
    with pytest.raises(UserError, match=r"^rewards.functions\[1\] = 'a\\x00' holds a NUL"):
        built(rewards={"functions": ["a", "a\0"]})


@catches("--run.output-dir of an unset shell variable begins a new run in silence")
@pytest.mark.parametrize("name", ["run.output_dir", "model.path", "data.path", "run.seed"])
def test_an_empty_text_is_no_value(name):
    section, key = name.split(".")
    with pytest.raises(UserError, match=f"{name} = '': expected something; leave the setting out"):
        built(**{section: {key: ""}})


@pytest.mark.parametrize("name", ["run.seed", "update.learning_rate", "algorithm.kl_target"])
def test_true_is_no_number(name):
    section, key = name.split(".")
    with pytest.raises(UserError, match=f"{name} = True: expected a number"):
        built(**{section: {key: True}})


def test_a_home_folder_in_a_file_is_found():
    settings = built(run={"output_dir": "~/mine"})
    assert settings.run.output_dir == str(Path.home() / "mine")


@catches("a FIFO is waited for in silence")
def test_a_fifo_is_no_settings_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(UserError, match="a FIFO, which may never end"):
        read_yaml(tmp_path / "fifo.yaml")


def test_one_value_in_a_file_stands_for_a_list_of_one(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("run: {trackers: tensorboard}\n")
    settings = settings_of("grpo", ["--config", str(file)])
    assert settings.run.trackers == ("tensorboard",)
    file.write_text("run: {trackers: wandboard}\n")
    with pytest.raises(UserError, match=r"run\.trackers\[0\] = 'wandboard': expected .*'wandb'"):
        settings_of("grpo", ["--config", str(file)])
