"""Where the prompts of a run come from, and what is tried before its model is loaded."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import lmpg
from lmpg.algorithms.ppo import PPO
from lmpg.language.run_prompts import SEEDED, begun, prompts_for
from lmpg.language.settings import LanguageSettings
from lmpg.settings.section import UserError
from tests.support.asking import Asks, environments_of
from tests.support.planted import catches
from tests.support.tiny import save_tiny, tiny_tokenizer


class Spells(Asks):
    """Begins with the row's word, which stands in a column of its own."""

    def reset(self, *, seed, options):
        super().reset(seed=seed, options={})
        return f"spell {options['word']}", {}


class Wrong(Spells):
    def step(self, action):
        return "no", 0.0, False, {}


def test_a_run_without_data_says_that_its_episodes_begin_from_seeds(capsys):
    tokenizer = tiny_tokenizer()
    environments = environments_of(tokenizer, (0,), Asks)
    settings = LanguageSettings[PPO](
        algorithm=PPO(), model={"path": "m"}, environment={"path": "memory:kind"}
    )
    policy = SimpleNamespace(context_length=512)
    found = prompts_for(settings, policy, tokenizer, None, environments, tell=True)  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"{SEEDED}\n"
    assert begun(found, environments, 0) is found


@catches("the prompts that environments begin with unknown to the forecast and the self-test")
def test_prompts_that_only_environments_know_are_begun_to_see_what_they_are_like(tmp_path, capsys):
    path, tokenizer = tmp_path / "words.jsonl", tiny_tokenizer()
    path.write_text("".join(json.dumps({"word": f"stone{i}"}) + "\n" for i in range(50)))
    environments = environments_of(tokenizer, (0,), Spells, data={"path": str(path)})
    settings = LanguageSettings[PPO](
        algorithm=PPO(),
        model={"path": "m"},
        data={"path": str(path)},
        environment={"path": "memory:kind"},
    )
    policy = SimpleNamespace(context_length=512)
    found = prompts_for(settings, policy, tokenizer, None, environments, tell=True)  # type: ignore[arg-type]
    said = "10 held out; each held-out one is asked up to 26 times in an evaluation"
    assert f"40 prompts to train on, {said} (evaluation.size = 256)" in capsys.readouterr().out
    shown = begun(found, environments, 0)
    assert [len(shown.train), len(shown.held_out)] == [8, 8]
    for one, row in zip(shown.train, found.train):
        assert one.ids == tokenizer.encode(f"spell {row.columns['word']}")


@catches("a wrong environment found after the model was loaded")
@pytest.mark.parametrize("rows", [None, [{"word": "stone"}] * 5])
def test_a_wrong_environment_is_refused_before_work(rows, tmp_path, monkeypatch):
    class Begins(Wrong):
        def reset(self, *, seed, options):
            return super().reset(seed=seed, options={"word": "stone"})

    def loads(*_):
        raise AssertionError("the model is loaded")

    if rows is None:
        monkeypatch.setattr("lmpg.language.program.policy_for", loads)
    with pytest.raises(UserError, match=r"Begins was tried for one turn: step returned 4 values"):
        lmpg.train(
            "ppo",
            model=save_tiny(tmp_path / "model"),
            data=rows,
            environment=Begins,
            sampling={"max_new_tokens": 4},
            run={"output_dir": str(tmp_path / "run")},
        )
    assert not (tmp_path / "run").exists()
