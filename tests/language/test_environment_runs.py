"""Runs in an environment of text: trained, resumed, checked, measured, and what is refused."""

from __future__ import annotations

import json
import os

import pytest

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.cli.asking import evaluate
from lmpg.language.checked import check_language
from lmpg.language.settings import LanguageSettings
from lmpg.settings.section import UserError
from tests.settings.test_config import built
from tests.support.planted import catches
from tests.support.programs import SMALL, outcome, run_here
from tests.support.tiny import save_tiny

OWN = '''
from tests.support.asking import Asks

class MyEnv(Asks):
    """Its episodes begin from the seed alone."""
'''


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "my_env.py").write_text(OWN)
    return {
        **SMALL,
        "model.path": save_tiny(tmp_path / "model"),
        "environment.path": f"{tmp_path / 'my_env.py'}:MyEnv",
        "environment.max-turns": 2,
        "run.total-steps": 2,
        "run.save-every": 1,
        "update.epochs": 1,
    }


@pytest.mark.slow
def test_a_run_without_data_or_reward_learns_is_resumed_and_measured(flags, tmp_path, capsys):
    whole = run_here("ppo", {**flags, "run.output-dir": tmp_path / "whole"})
    part = {**flags, "run.output-dir": tmp_path / "part"}
    run_here("ppo", {**part, "run.total-steps": 1})
    run_here("ppo", {**part, "run.resume": True})
    assert outcome(tmp_path / "part") == outcome(whole)
    line = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["environment/errors"] == 0
    assert 1 < line["environment/turns"] <= 2
    assert line["rewards/environment/mean"] == pytest.approx(line["reward"])
    row = json.loads((whole / "samples.jsonl").read_text().splitlines()[0])
    assert row["turns"][0]["text"] == row["completion"][: len(row["turns"][0]["text"])]
    assert len(row["tokens"]["texts"]) == len(row["tokens"]["turn"]) == row["tokens"]["length"]
    inputs = json.loads((whole / "inputs.json").read_text())["inputs"]
    assert "my_env.py" in inputs["environment.path"]
    capsys.readouterr()
    evaluate(["--model.path", str(whole), "--size", "3", "--output", str(tmp_path / "found.json")])
    measured = json.loads((tmp_path / "found.json").read_text())
    assert measured["metrics"]["turns"] > 1
    assert measured["rows"][0]["responses"][0]["turns"]
    assert measured["metrics"]["reward"] == pytest.approx(
        json.loads((whole / "summary.json").read_text())["after"]["reward"]
    )


def test_a_check_of_a_run_in_an_environment_takes_a_step_and_knows_no_data_traps(
    flags, monkeypatch, capsys
):
    sections = {"model": {"path": flags["model.path"], "precision": "fp32"}}
    sections["environment"] = {"path": flags["environment.path"], "max_turns": 2}
    sections["sampling"] = {"max_new_tokens": 6}
    sections["update"] = {"rollout_size": 4, "minibatch_size": 4, "learning_rate": 1e-5}
    found = check_language(built(LanguageSettings[PPO], **sections), "ppo")
    assert not [x for x in found if "duplicate" in x or "held-out" in x or "few prompts" in x]
    assert "a step takes" in capsys.readouterr().out


@catches("workers are closed by garbage collection alone where a later part is refused")
def test_workers_of_rewards_and_environments_end_where_a_later_part_is_refused(
    flags, tmp_path, monkeypatch
):
    def refuse(*_):
        raise UserError("the model is no good")

    monkeypatch.setattr("lmpg.language.program.policy_for", refuse)
    note = "import os\nopen(os.path.dirname(__file__) + f'/{os.getpid()}.pid', 'w').close()\n"
    (tmp_path / "my_env.py").write_text(note + OWN)
    (tmp_path / "judge.py").write_text(note + "def judge(completions): return [1]\n")
    rewards = {"rewards.functions": f"{tmp_path / 'judge.py'}:judge"}
    with pytest.raises(UserError) as refused:  # its traceback keeps all that was opened
        run_here("ppo", {**flags, **rewards, "run.output-dir": tmp_path / "run"})
    assert "the model is no good" in str(refused.value)
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


TALKS = {"environment": {"path": "my_env.py:MyEnv"}, "model": {"path": "M"}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rewards": {"process": "token"}}, r"process = token with environment\.path"),
        ({"rewards": {"overlong_tokens": 3}}, r"overlong_tokens = 3 with environment\.path"),
        ({"environment": {"max_tokens": 16}}, r"max_tokens = 16 is no more than .*= 256"),
        ({"sampling": {"server": ("http://a:1",)}}, r"server = .* with environment\.path"),
        ({"model": {"path": None}}, r"environment\.path = my_env.py:MyEnv, but model\.path miss"),
        (
            {"environment": {"path": None, "tools": ("t.py:f",)}},
            r"but data\.path and rewards\.functions or rewards\.models missing",
        ),
    ],
)
def test_what_does_not_go_with_an_environment_is_refused(sections, message):
    given = {k: {**TALKS.get(k, {}), **sections.get(k, {})} for k in {*TALKS, *sections}}
    with pytest.raises(UserError, match=message):
        built(LanguageSettings[GRPO], **given)
