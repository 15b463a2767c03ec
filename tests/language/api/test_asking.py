"""`lmpg.evaluate` and `lmpg.generate` give what the commands give, from objects of Python."""

from __future__ import annotations

import json

import pytest

import lmpg
from lmpg.cli.asking import evaluate as evaluate_command
from lmpg.cli.asking import generate as generate_command
from tests.language.api.test_train import ROWS, trained
from tests.support.programs import REWARD, own_parts, words
from tests.support.tiny import tiny_model, tiny_tokenizer

OBJECTS = {"model": tiny_model(), "tokenizer": tiny_tokenizer()}


def closure():
    """A reward that no other process can import, or each would load this file and torch."""

    def letters_of(completions, number):
        return [c.count("a") - len(c) / 20 for c in completions]

    return letters_of


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> lmpg.Run:
    """A run with everything in memory."""
    return trained(tmp_path_factory.mktemp("run") / "run")


def test_objects_are_evaluated_as_files_are(tmp_path):
    parts = own_parts(tmp_path)
    (tmp_path / "reward.py").write_text(REWARD.replace("None if n % 7 == 3 else ", ""))
    flags = {k: parts[k] for k in ("model.path", "data.path", "rewards.functions")}
    more = {"samples": 4, "sampling.max-new-tokens": 12, "output": tmp_path / "found.json"}
    evaluate_command(words({**flags, **more}))
    told = json.loads((tmp_path / "found.json").read_text())
    found = lmpg.evaluate(
        **OBJECTS, data=ROWS, rewards=[closure()], samples=4, sampling={"max_new_tokens": 12}
    )
    assert found.metrics == told["metrics"]
    assert found.intervals == told["intervals"]
    texts = [[x["text"] for x in row["responses"]] for row in found.samples]
    assert texts == [[x["text"] for x in row["responses"]] for row in told["rows"]]


def test_a_run_is_evaluated_on_its_own_data_and_compared_with_its_start(run):
    found = lmpg.evaluate(run, rewards=closure(), compare="start", max_new_tokens=8)
    assert len(found.samples) == 8  # those that training held back
    assert found.differences.keys() == found.intervals.keys()
    assert "less start</th>" in found._repr_html_()
    assert "reward" in repr(found)
    again = lmpg.evaluate(str(run.folder), rewards=closure(), compare=run, max_new_tokens=8)
    assert again.metrics == found.metrics
    assert set(again.differences["reward"]) == {0.0}


def test_prompts_are_answered_as_by_the_command(run, capsys):
    prompts = ["abc", "de"]
    flags = {"model.path": run.folder, "sampling.max-new-tokens": 8, "seed": 1}
    generate_command([*prompts, *words({**flags, "jsonl": True})])
    told = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    found = lmpg.generate(run, prompts, max_new_tokens=8, seed=1)
    assert found == told
    assert ">abc</td>" in found._repr_html_()
    assert lmpg.generate(run, "abc", max_new_tokens=8, greedy=True) == lmpg.generate(
        run.model, "abc", tokenizer=run.tokenizer, max_new_tokens=8, greedy=True
    )
    several = lmpg.generate(run, prompts, samples=3, sampling={"max_new_tokens": 4})
    assert [len(texts) for texts in several] == [3, 3]


def test_runs_are_compared_as_by_the_command(run, tmp_path):
    found = lmpg.compare([run, str(run.folder)][:1])
    assert "reward:" in repr(found)
    page = found.save(tmp_path / "page.html").read_text()
    assert page == found.page
    assert found._repr_html_().startswith("<iframe srcdoc=")


def test_rewards_that_a_run_cannot_keep_are_named_and_no_prompts_have_no_answers(run):
    lost = r"objects of a Python program, which a run cannot keep \(letters\): give them again"
    with pytest.raises(lmpg.UserError, match=lost):
        lmpg.evaluate(run)
    with pytest.raises(lmpg.UserError, match=lost):
        evaluate_command(["--model.path", str(run.folder)])
    assert lmpg.generate(run, []) == []


def test_a_misspelt_run_is_not_asked_of_the_hub(run, monkeypatch):
    monkeypatch.chdir(run.folder.parent.parent)
    near = run.folder.relative_to(run.folder.parent.parent)
    with pytest.raises(lmpg.UserError, match=rf"{near}x does not exist, did you mean {near.name}"):
        lmpg.generate(f"{near}x", "a")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": 0}, "expected greater than 0; for the likeliest tokens, --help greedy"),
        ({"n": 3}, "generate: unknown setting n = 3; did you mean samples?"),
        ({"max_new_token": 3}, "generate: unknown setting max_new_token = 3; did you mean"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens = 0: expected"),
        ({"model": "nowhere/at/all"}, "model.path = nowhere/at/all does not exist"),
        ({"model": tiny_model()}, "in memory, expected its tokenizer beside it"),
        ({"prompts": [""]}, "prompt 1 of 1 is empty"),
        ({"prompts": 3}, "prompts is a int, expected a text, a chat"),
        ({"prompts": ["a", 3]}, "prompts[1] is a int, expected a text, a chat"),
        ({"prompts": {"role": "user", "content": "a"}}, "prompts is a dict, expected a text"),
    ],
)
def test_bad_input_is_answered_in_one_line(run, wrong, said):
    with pytest.raises(lmpg.UserError) as refused:
        lmpg.generate(**{"model": run, "prompts": ["a"], **wrong})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
