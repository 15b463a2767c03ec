"""Presets come with the package, wherever it is installed; YAML reads environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmpg.cli.main import agent_settings, methods, settings_of
from lmpg.cli.train import train
from lmpg.runs import folder as run_folder
from lmpg.runs.folder import read_config
from lmpg.settings import presets
from lmpg.settings.section import UserError
from lmpg.settings.yaml_files import escaped, read_yaml, unescaped
from tests.support.planted import catches


def test_presets_are_found_beside_the_package_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"dapo", "gspo", "orpo"} <= {*presets.preset_names()}
    assert settings_of("dapo", []).algorithm.clip_high == 0.28


@catches("a method that trains with other settings when its preset is lost")
def test_a_damaged_installation_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "files", lambda package: tmp_path)
    for start in (lambda: settings_of("gspo", []), lambda: agent_settings([])):
        with pytest.raises(UserError, match="is missing: lmpg's installation is damaged"):
            start()


@pytest.mark.parametrize("name", ["gpso", "dapo2", "../dapo", "DAPO"])
def test_an_unknown_name_trains_nothing(name):
    with pytest.raises(UserError, match=f"unknown method '{name}'; .*expected one of"):
        train([name])


def test_an_environments_preset_is_a_config_by_its_name(tmp_path, monkeypatch):
    settings, _ = agent_settings(["--config", "ppo_cartpole_fast", "--run.seed", "3"])
    assert (settings.env.num_envs, settings.policy.trunk, settings.run.seed) == (32, "shared", 3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--config ppo_cartpole_fats: No such file"):
        agent_settings(["--config", "ppo_cartpole_fats"])


def written(folder: Path, text: str) -> Path:
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return folder / "x.yaml"


def test_a_variable_is_read_wherever_a_value_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOT", "/data: #1, {x}")
    monkeypatch.setenv("STEPS", "50")
    text = (
        "# ${NOWHERE} is only talked about\n"
        "data: {path: ${ROOT}/a.jsonl}\nrun:\n  total_steps: ${STEPS}\n"
        "rewards:\n  functions: [${ROOT}/f.py:g, '${STEPS}']\n  kwargs: {$${STEPS}: $5 ${}}\n"
    )
    assert read_yaml(written(tmp_path, text.replace(" ${}", ""))) == {
        "data": {"path": "/data: #1, {x}/a.jsonl"},
        "run": {"total_steps": "50"},
        "rewards": {
            "functions": ["/data: #1, {x}/f.py:g", "50"],
            "kwargs": {"${STEPS}": "$5"},
        },
    }


def test_a_variable_sets_a_number_as_a_flag_does(tmp_path, monkeypatch):
    monkeypatch.setenv("LR", "1e-5")
    file = written(tmp_path, "update: {learning_rate: ${LR}, epochs: ${N}}\n")
    monkeypatch.setenv("N", "2")
    update = settings_of("grpo", ["--config", str(file)]).update
    assert (update.learning_rate, update.epochs) == (1e-5, 2)
    monkeypatch.setenv("N", "two")
    with pytest.raises(UserError, match="epochs = 'two': expected a valid integer"):
        settings_of("grpo", ["--config", str(file)])


@catches("a variable that is not set read as no text at all")
def test_variables_that_are_not_set_are_refused_all_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    file = written(tmp_path, "model: {path: ${NOWHERE}/m}\nrewards: {functions: [a, ${NO_ONE}]}\n")
    with pytest.raises(UserError) as error:
        read_yaml(file)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{file}: model.path = ${{NOWHERE}}/m: the environment variable NOWH")
    assert "export NOWHERE=…" in first
    assert second.startswith(f"{file}: rewards.functions[1] = ${{NO_ONE}}: ")


@catches("a run's config.yaml whose letters are read as a variable")
@pytest.mark.parametrize("text", ["${HOME}", "$${HOME}", "$$$${HOME} $x ${", "a ${1} $"])
def test_letters_that_look_like_a_variable_go_through_config_yaml(text, tmp_path):
    assert unescaped(escaped({"a": [text]})) == {"a": [text]}
    own = ["--model.path", "m", "--data.path", "d", "--data.system-prompt", text]
    given = [*own, "--run.output-dir", str(tmp_path / "run")]
    settings = settings_of("sft", given)
    opened = run_folder.open_run(settings, "x")
    opened.start({})
    opened.close()
    config = tmp_path / "run" / "config.yaml"
    assert settings_of("sft", ["--config", str(config)]).data.system_prompt == text
    assert read_config(config)["data"]["system_prompt"] == text


def test_every_method_is_known_with_its_preset():
    for name in (*methods(), *presets.preset_names()):
        assert presets.named_preset(name, methods())[0] in methods()
