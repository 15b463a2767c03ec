"""--help of a method: its sections in a screen, all of it on request."""

from __future__ import annotations

import re
from functools import partial

import pytest

from lmpg.cli.asking import settings_for
from lmpg.cli.main import agent_settings, methods, settings_class, settings_of
from lmpg.gym.settings import GYM_METHODS, gym_settings_class
from lmpg.language.trained.command_settings import EvaluateSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches


def shown(words: str, capsys, start=lambda words: settings_of("grpo", words)) -> list[str]:
    """The lines that a command line with --help prints."""
    with pytest.raises(SystemExit) as exit_:
        start(words.split())
    assert exit_.value.code == 0
    return capsys.readouterr().out.splitlines()


@catches("an overview longer than a screen")
@pytest.mark.parametrize("name", [*methods(), *GYM_METHODS])
def test_help_is_an_overview_of_a_screen_with_every_section(name, capsys):
    language = name in methods()
    start = partial(settings_of, name) if language else agent_settings
    words = "--help" if language else f"--algorithm.name {name} --help"
    lines = shown(words, capsys, start)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    kind = settings_class(name) if language else gym_settings_class(name)
    assert [line.split()[0] for line in lines if re.match(r"  \w", line)] == [*kind.model_fields]
    assert any("--help all" in line for line in lines)


def test_the_overview_shows_the_values_that_will_hold(capsys):
    text = " ".join(shown("--help --update.learning-rate 0.125 --data.path a.jsonl", capsys))
    assert "--update.learning-rate 0.125" in text
    assert "--data.path a.jsonl" in text


def test_help_on_a_section_or_a_word_shows_these_settings_alone(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = "\n".join(shown("--help update", capsys))
    assert "--update.learning-rate" in text
    assert "Peak learning rate" in text
    assert "--run.seed" not in text
    text = "\n".join(shown("--help model.lora data.path", capsys))
    assert {*re.findall(r"--([a-z]+\.[a-z.]+)", text)} >= {"model.lora.rank", "data.path"}
    assert "--model.path" not in text
    assert "--algorithm.kl-coef" in "\n".join(shown("--help kl", capsys))
    assert "usage: lmpg train grpo" in "\n".join(shown("--help all", capsys))


def test_help_on_what_is_no_setting_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"--help lr: no setting .*did you mean update.learning"):
        settings_of("grpo", ["--help", "lr"])
    with pytest.raises(UserError, match="--help zzzz: no setting is called so; expected a section"):
        settings_of("grpo", ["--help", "zzzz"])


def test_help_on_a_wrong_command_line_tells_what_is_wrong():
    with pytest.raises(UserError, match="unknown flag --lr 1"):
        settings_of("grpo", ["--lr", "1", "--help"])


def test_the_texts_of_the_overview_stand_in_one_column(capsys):
    with pytest.raises(SystemExit):
        settings_for("evaluate", EvaluateSettings, ["--help"])
    rows = re.findall(r"^  (\w+ +)\S", capsys.readouterr().out, re.M)
    assert any(row.startswith("torch_threads") for row in rows)
    assert {len(row) for row in rows} == {len("torch_threads  ")}
