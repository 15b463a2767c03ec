"""Every kind of reward × every way to fail: the sample is left out, its neighbours are not."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest

from lmpg.language.data.tokenizing import completion_text
from lmpg.language.models.sequence_classifier import SequenceScorer
from lmpg.language.rewards.request import RewardRequest
from lmpg.language.rewards.reward_model import ModelReward
from lmpg.language.rewards.scorer import PendingScores, Scorer
from lmpg.language.rewards.settings import RewardSettings
from tests.support.planted import catches
from tests.support.programs import metrics, own_parts, run_here
from tests.support.several_runs import forked
from tests.support.tiny import tiny_model, tiny_tokenizer

CODE = """
import asyncio, math, os, time

ODD = {"nan": math.nan, "inf": math.inf, "none": None, "text": "1.0", "list": [1]}

def plain(completions):
    if "throws" in completions: raise ValueError("boom")
    if "exits" in completions: os._exit(3)
    if "hangs" in completions: time.sleep(600)
    scores = [ODD.get(text, len(text)) for text in completions]
    return scores[:-1] if "short" in completions else scores

async def awaited(completions):
    if "hangs" in completions: await asyncio.sleep(600)
    await asyncio.sleep(0)
    return plain(completions)

async def gathered(completions):
    return await asyncio.gather(*map(one, completions), return_exceptions=True)

async def one(text):
    return (await awaited([text]))[0]

def stepwise(completions):
    scores = plain(completions)
    return [[score] if text == "list" else score for text, score in zip(completions, scores)]
"""
FAULTS = ("throws", "exits", "hangs", "nan", "inf", "none", "text", "list", "short")
KINDS = {  # function and settings
    "function": ("plain", {}),
    "async": ("awaited", {}),
    "async, all at once": ("gathered", {}),
    "pool": ("plain", {"workers": 3}),
    "pool of async": ("awaited", {"workers": 2}),
    "process": ("stepwise", {"process": "step"}),
}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "mine.py").write_text(CODE)
    made: dict[str, Scorer] = {}
    decode = partial(completion_text, tiny_tokenizer())
    for kind, (name, changes) in KINDS.items():
        function = f"{folder / 'mine.py'}:{name}"
        settings = RewardSettings(functions=(function,), timeout=0.3, **changes)
        made[kind] = Scorer(settings, decode=decode)
    yield made
    for one in made.values():
        one.close()


def scored(scorer: Scorer, completions: list[str]):
    ids = [tiny_tokenizer()(text)["input_ids"] for text in completions]
    return scorer.score(["p"] * len(ids), completions, ids, {})


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_sample_is_left_out_and_counted_and_the_next_batch_is_whole(scorers, kind, fault):
    texts = ["a", "abc", fault, "ab", "abcd"]
    scores = scored(scorers[kind], texts)
    assert scores.totals == [1, 3, None, 2, 4]
    assert scores.errors == 1
    assert ": 1 of 5 without a score: " in scores.messages[0]
    assert scored(scorers[kind], texts[:2]).totals == [1, 3]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A model that gives NaN where there is a $ or a |."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = tiny_tokenizer()
    model = tiny_model("reward")
    for token in ("$", "|"):
        model.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids(token)] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@catches("a model that raises on one sample ends the run")
@pytest.mark.parametrize(
    ("fault", "message"), [("a|", "IndexError: index out of range"), ("$", "the model gave nan")]
)
def test_a_model_that_fails_on_a_sample_scores_the_others(judge, fault, message, monkeypatch):
    score, raising = SequenceScorer.score, tiny_tokenizer().convert_tokens_to_ids("|")

    def checked(self, rows):
        if any(raising in row for row in rows):
            raise IndexError("index out of range")
        return score(self, rows)

    monkeypatch.setattr(SequenceScorer, "score", checked)
    with Scorer(RewardSettings(models=(judge,))) as scorer:
        scores = scored(scorer, ["a", fault, "b"])
        right = scored(scorer, ["a", "b"]).totals
    # other batches round otherwise
    assert scores.totals[::2] == pytest.approx(right, rel=1e-5)
    assert scores.totals[1] is None
    assert message in scores.messages[0]


def test_a_model_that_gives_too_few_scores_gives_none():
    class Short:
        def score(self, rows):
            return [1.0] * (len(rows) - 1)

    reward = ModelReward("judge", Short(), tiny_tokenizer(), 50)
    scorer = Scorer.__new__(Scorer)
    scorer.weights, scorer._said = (1.0,), defaultdict(set)
    request = RewardRequest(["p"] * 2, ["a", "b"], [[1], [1]], {})
    scores = PendingScores(scorer, request, {"judge": reward.submit(request)}).result()
    assert scores.totals == [None, None]
    assert (
        "judge: 2 of 2 without a score: ValueError: the model gave 0 scores for 1"
        in scores.messages[0]
    )


MIXED = """
import asyncio, math, os, time

def letters(completions, number):
    scores = [completion.count("a") - len(completion) / 20 for completion in completions]
    for i, n in enumerate(number):
        if n % 16 == 1: raise RuntimeError("it broke")
        if n % 16 == 2: os._exit(3)
        if n % 16 == 3: time.sleep(600)
        if n % 16 == 4: return scores[:-1]
        scores[i] = {5: math.nan, 6: math.inf, 7: None}.get(n % 16, scores[i])
    return scores

async def waited(completions, number):
    await asyncio.sleep(0)
    return letters(completions, number)
"""


def mixed_runs(folder: Path, judge: str) -> dict[str, dict]:
    """Flags of runs in which rewards of each kind fail in all ways."""
    parts = own_parts(folder / "parts")
    (folder / "parts" / "reward.py").write_text(MIXED)
    prompts = [{"prompt": "ab|"[: 2 + (n % 16 == 9)], "number": n} for n in range(48)]
    text = "".join(json.dumps(row) + "\n" for row in prompts)
    (folder / "parts" / "prompts.jsonl").write_text(text)
    shared = {
        **parts,
        "rewards.timeout": 0.3,
        "rewards.max-error-share": 1,
        "algorithm.group-size": 2,
        "evaluation.size": 2,
        "update.rollout-size": 16,
        "run.total-steps": 2,
    }
    function = parts["rewards.functions"]
    kinds = {
        "function": {},
        "async": {"rewards.functions": function.replace("letters", "waited")},
        "pool": {"rewards.workers": 2, "rewards.chunks": 2},
        "model": {"rewards.functions": "length(target=9)", "rewards.models": judge},
    }
    return {
        kind: {**shared, **changes, "run.output-dir": str(folder / kind)}
        for kind, changes in kinds.items()
    }


@pytest.mark.slow
def test_runs_of_one_process_and_of_two_go_on_whatever_their_rewards_do(tmp_path, judge):
    one, two = (mixed_runs(tmp_path / name, judge) for name in ("one", "two"))
    forked(2, [("grpo", flags) for flags in two.values()], tmp_path / "log")
    for kind, flags in one.items():
        alone = metrics(run_here("grpo", flags))
        together = metrics(Path(two[kind]["run.output-dir"]))
        assert all(0 < line["reward_errors"] < 16 for line in alone)
        assert len(together) == len(alone) == 2
        for line, other in zip(together, alone):
            assert line == pytest.approx(other, rel=1e-4, abs=1e-5)


@catches("a finite score that is inf in float32")
def test_a_score_that_float32_cannot_hold_is_none(tmp_path):
    (tmp_path / "mine.py").write_text("def huge(completions): return [1.0, 1e300, 1e30]")
    settings = RewardSettings(functions=(f"{tmp_path / 'mine.py'}:huge",), weights=(1e10,))
    with Scorer(settings) as scorer:
        found = scored(scorer, ["a", "b", "c"])
    assert found.totals == [1e10, None, None]
    assert (found.errors, len(found.messages)) == (2, 1)
    assert "2 of 3 without a score: it is beyond ±1e+18" in found.messages[0]
