"""Rows that take turns together: what was read of a row is kept, only what is new is read."""

from __future__ import annotations

import pytest
import torch

from lmpg.language.models.inputs import language_inputs
from lmpg.language.sampling.engines.cpu import CpuDecoder
from lmpg.language.sampling.engines.transformers import TransformersDecoder
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.turn_by_turn import Turns, samples_of_turns
from tests.support.families import policy_of, tiny_family
from tests.support.planted import catches
from tests.support.recorded_graphs import RecordedGraphs

PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 12, 30, 31], [5, 6, 7]]
BETWEEN = [[10], [11, 12, 13], [14, 15], [16, 17, 18, 19]]
STEPS = 7


def numbers(turn, rows):
    drawn = torch.rand(len(PROMPTS), STEPS, generator=torch.Generator().manual_seed(turn))
    return drawn[list(rows)]


def talked(policy, capture=None, order=range(4), leaves=(), turns=3, check_every=1):
    """Rows over several turns, in an order: (texts, recorded, places, sampler); the row `leaves`
    takes the first turn alone. check_every: steps after which rows that have ended may leave."""
    sampler = Sampler(policy, STEPS, capture=capture)
    if capture is None:
        sampler.check_every = check_every
    taken = Turns(sampler, 60)
    texts = {b: list(PROMPTS[b]) for b in order}
    places = {b: [] for b in order}
    recorded = []
    for turn in range(turns):
        rows = [b for b in order if not (turn and b in leaves)]
        limits_R = torch.tensor([STEPS - b % 2 for b in rows])
        samples = taken.sample(rows, [texts[b] for b in rows], limits_R, numbers(turn, rows))
        recorded.append((rows, samples))
        for r, b in enumerate(rows):
            ids = samples.inputs["response_ids"][r, : samples.mask_BT[r].sum()].tolist()
            start = len(texts[b]) - len(PROMPTS[b])
            places[b].append((start, start + len(ids)))
            texts[b] += ids
            if turn + 1 < turns:
                texts[b] += BETWEEN[(turn + b) % 4]
    return texts, recorded, places, sampler


def whole(policy, texts, recorded, places):
    rows = sorted(texts)
    responses = [texts[b][len(PROMPTS[b]) :] for b in rows]
    parts = [PROMPTS[b] for b in rows], responses, [places[b] for b in rows]
    return samples_of_turns(policy, *parts, recorded, [True] * len(rows))


def assert_exact(policy, samples):
    """What was recorded turn by turn equals a fresh forward over the whole rows."""
    with torch.no_grad():
        fresh = policy.evaluate(samples.inputs)
    for name in ("logprobs_BT", "entropy_BT", "values_BT"):
        found, expected = getattr(samples, name), getattr(fresh, name)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["own", "transformers"])
def engine(request, monkeypatch):
    if request.param == "transformers":
        monkeypatch.setattr("lmpg.language.sampling.sampler.why_transformers", lambda *_: "a test")
    return request.param


@catches(
    "kept keys placed one column beside their tokens",
    "positions of a later turn counted from the row's padding",
    "a sliding window that forgets what a row has kept",
    "tokens that were computed after a row's end taken for its own",
)
@pytest.mark.parametrize("family", ["llama", "mistral, short window", "gpt2", "gemma2", "qwen3"])
def test_what_is_recorded_over_several_turns_equals_a_fresh_forward(family, engine):
    policy = policy_of(tiny_family(family))
    texts, recorded, places, sampler = talked(policy, leaves=(1,), check_every=4)
    samples = whole(policy, texts, recorded, places)
    assert len({len(x) for x in texts.values()}) > 2
    assert ("anew" in sampler.backend) == (
        engine == "transformers" and family in ("mistral, short window", "gemma2")
    )
    assert_exact(policy, samples)


def test_a_turn_reads_only_what_is_new(engine, monkeypatch):
    read = []
    decoder = CpuDecoder if engine == "own" else TransformersDecoder
    go_on = decoder.go_on
    monkeypatch.setattr(
        decoder, "go_on", lambda self, x: read.append(x.new_R.tolist()) or go_on(self, x)
    )
    talked(policy_of(tiny_family("llama")))
    # the last token of a turn, which nothing was computed from, and what stands behind it
    assert read[0] == [len(BETWEEN[b % 4]) + 1 for b in range(4)]
    assert read[1] == [len(BETWEEN[(1 + b) % 4]) + 1 for b in range(4)]


@catches("random numbers or caches that go by the place in a batch")
def test_neither_their_order_nor_which_rows_are_together_change_what_rows_say(engine):
    policy = policy_of(tiny_family("llama"))
    texts, *_ = talked(policy)
    assert talked(policy, order=[3, 1, 0, 2])[0] == texts
    few = talked(policy, order=[2, 3])[0]
    assert few == {b: texts[b] for b in (2, 3)}
    assert talked(policy, leaves=(0, 1))[0][3] == texts[3]


def test_the_cuda_engine_reads_rows_anew_says_so_and_samples_the_same():
    policy = policy_of(tiny_family("llama"))
    texts, *_ = talked(policy)
    found, recorded, places, sampler = talked(policy, capture=RecordedGraphs())
    assert found == texts
    assert "anew" in sampler.backend
    assert_exact(policy, whole(policy, found, recorded, places))


@catches("EOS barred by the step in the row and not in the turn")
def test_min_new_tokens_holds_in_every_turn_for_sampler_and_update():
    policy = policy_of(tiny_family("llama"))
    policy.eos_token_ids = tuple(range(1, 40))
    policy.head.forbid_early(policy.eos_token_ids, 3)
    texts, recorded, places, _ = talked(policy)
    lengths = [end - start for row in places.values() for start, end in row]
    assert min(lengths) >= 3
    assert {4, 5} & set(lengths)  # most rows end as soon as they may
    assert_exact(policy, whole(policy, texts, recorded, places))


def test_a_row_of_one_turn_has_the_mask_and_inputs_of_a_response():
    policy = policy_of(tiny_family("llama"))
    texts, recorded, places, _ = talked(policy, turns=1)
    (_, samples), found = recorded[0], whole(policy, texts, recorded, places)
    expected = language_inputs(PROMPTS, [texts[b][len(PROMPTS[b]) :] for b in range(4)], 0)
    for name, x in expected.items():
        assert torch.equal(found.inputs[name], x)
    assert torch.equal(found.mask_BT, samples.mask_BT)
    assert torch.equal(found.logprobs_BT, samples.logprobs_BT)
