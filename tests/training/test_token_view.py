"""Numbers of single tokens: the credit that they got, at a bounded size, and training unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lmpg.language.rollouts import shown
from lmpg.training.token_view import MOST, VIEWS, is_due, kept, short, views_tokens
from tests.support.planted import catches
from tests.support.programs import outcome, own_parts, run_here

LAM = 0.9
PLAIN = {
    "algorithm.whiten": False,
    "algorithm.gamma": 1.0,
    "algorithm.lam": LAM,
    "algorithm.kl-coef": 0.05,
    "update.learning-rate": 1e-3,
}
GROUPS = {"algorithm.group-size": 4, "algorithm.kl-coef": 0.0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return own_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def ppo(parts, tmp_path_factory):
    """The folder of a PPO run whose advantages are not whitened."""
    place = {"run.output-dir": tmp_path_factory.mktemp("ppo") / "run"}
    return run_here("ppo", {**parts, **PLAIN, **place})


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def scored(folder: Path, step: int) -> list[dict]:
    return [x for x in rows(folder) if x["step"] == step and x["score"] is not None]


@catches("the advantages of other rows beside the tokens", "the rewards without the KL penalty")
def test_the_scores_credit_flows_back_from_the_last_token(ppo):
    for row in scored(ppo, 1):  # the critic says 0 still: each token has λ times the next one's
        credit = row["tokens"]["advantage"]
        assert credit[-1] == pytest.approx(row["score"], rel=1e-3)
        assert credit[:-1] == pytest.approx([LAM * x for x in credit[1:]], rel=1e-3, abs=1e-4)
    for row in scored(ppo, 3):  # later it is GAE's recursion, from the end to the start
        tokens = row["tokens"]
        values = [*tokens["value"], 0.0]
        assert any(values)
        later = 0.0
        for t in range(tokens["length"] - 1, -1, -1):
            delta = tokens["reward"][t] + values[t + 1] - values[t]
            later = delta + LAM * later
            assert tokens["advantage"][t] == pytest.approx(later, rel=2e-3, abs=2e-3)


def test_a_tokens_reward_is_its_part_of_the_score_less_the_kl_penalty(ppo):
    for row in scored(ppo, 3):
        tokens = row["tokens"]
        paid = [-PLAIN["algorithm.kl-coef"] * kl for kl in tokens["kl"]]
        paid[-1] += row["score"]
        assert tokens["reward"] == pytest.approx(paid, rel=1e-2, abs=1e-4)
        assert any(abs(kl) > 1e-4 for kl in tokens["kl"])


@catches("the ratio of the policy before the update")
def test_the_ratio_tells_how_the_update_moved_each_token(ppo):
    steps = {row["step"] for row in rows(ppo)}
    assert steps == {1, 2, 3}
    ratios = [x for row in rows(ppo) for x in row["tokens"]["ratio"]]
    assert min(ratios) > 0
    assert sum(abs(x - 1) > 1e-3 for x in ratios) > len(ratios) / 2
    better = [
        (a, r)
        for row in scored(ppo, 1)
        for a, r in zip(row["tokens"]["advantage"], row["tokens"]["ratio"])
    ]
    moved = sum(a * (r - 1) for a, r in better)
    assert moved > 0  # towards what was better than expected


def test_the_tokens_write_the_completion_and_show_the_end(ppo):
    ended = 0
    for row in rows(ppo):
        texts = row["tokens"]["texts"]
        assert len(texts) == row["tokens"]["length"]
        whole = "".join(texts)
        assert whole.startswith(row["completion"])
        assert (whole != row["completion"]) == row["finished"]
        ended += row["finished"]
    assert ended


@catches("what is shown rounded in place, before it is learned from")
@pytest.mark.parametrize(("name", "kind"), [("ppo", PLAIN), ("grpo", GROUPS)])
def test_training_is_the_same_bit_for_bit_without_the_view(parts, tmp_path, name, kind, ppo):
    flags = {**parts, **kind, "run.output-dir": tmp_path / "with"}
    seen = outcome(ppo if name == "ppo" else run_here(name, flags))
    flags |= {"run.token-view": "False", "run.output-dir": tmp_path / "without"}
    plain = run_here(name, flags)
    assert all("tokens" not in row for row in rows(plain))
    other = outcome(plain)
    assert seen.pop("samples") != other.pop("samples")
    assert seen == other


def test_groups_stand_together_with_what_the_method_has(parts, tmp_path):
    folder = run_here("grpo", {**parts, **GROUPS, "run.output-dir": tmp_path / "run"})
    first = [row for row in rows(folder) if row["step"] == 1]
    assert [row["group"] for row in first] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len({row["prompt"] for row in first[:4]}) == 1
    for row in first:
        numbers = row["tokens"].keys() - {"prompt", "length", "texts"}
        assert numbers == {"advantage", "reward", "logprob", "entropy", "ratio", "kl"}
        assert len(set(row["tokens"]["advantage"])) == 1  # one for the whole response


@pytest.mark.parametrize(
    ("size", "count"), [(1, 4), (2, 8), (3, 6), (4, 8), (5, 5), (8, 8), (16, 8)]
)
def test_whole_groups_are_shown_where_they_are_small(size, count):
    assert shown.num_shown(size) == count


@pytest.mark.parametrize(("every", "total"), [(1, 3), (10, 100), (10, 20_000), (7, 1000), (50, 20)])
def test_first_and_last_step_have_tokens_and_few_between(every, total):
    seen = [i for i in range(1, total + 1) if views_tokens(i, every, total)]
    assert seen[0] == 1
    assert seen[-1] == total
    assert len(seen) <= VIEWS + 2
    assert all(is_due(i, every, total) for i in seen)
    assert not any(is_due(i, 0, total) for i in range(1, total + 1))


def test_long_responses_keep_their_start_and_their_end():
    assert kept(MOST) == list(range(MOST))
    assert (kept(1000)[:2], kept(1000)[-2:], len(kept(1000))) == ([0, 1], [998, 999], MOST)


def test_numbers_are_short_and_none_where_json_has_no_word_for_them():
    x = torch.tensor([1.23456789, -1e-7, float("nan"), float("-inf"), 123456.0])
    assert short(x) == [1.235, 0.0, None, None, 123500.0]
