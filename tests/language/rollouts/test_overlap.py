"""Rollouts generated in parts: the same completions, scored while the next are generated."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import concatenated
from tests.language.rollouts.test_collect import FakeScorer, source_of
from tests.support.planted import catches
from tests.support.tiny import PAD


def same(found, expected) -> None:
    """Equal to the bit, except for what floating point makes of another batch."""
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, dict):
            same(SimpleNamespace(**other), SimpleNamespace(**value))
        elif value is None or value.dtype != torch.float32:
            assert (other is None) if value is None else torch.equal(other, value), name
        else:
            torch.testing.assert_close(other, value, atol=1e-6, rtol=1e-6)


@catches(
    "parts of a rollout padded on the wrong side",
    "each part of a rollout draws the first rows' random numbers",
)
@pytest.mark.parametrize("chunks", [2, 3, 100])
@pytest.mark.parametrize("algorithm", [PPO(), GRPO(group_size=4)])
def test_the_number_of_parts_changes_no_token_and_no_score(algorithm, chunks):
    whole = source_of(algorithm).collect(1)
    parts = source_of(algorithm, chunks=chunks).collect(1)
    same(parts.rollout, whole.rollout)
    assert parts.samples == whole.samples
    timeless = [{k: v for k, v in x.metrics.items() if k[:5] != "time/"} for x in (parts, whole)]
    assert timeless[0] == pytest.approx(timeless[1], abs=1e-5)


def test_parts_of_different_widths_become_what_is_sampled_together():
    policy = source_of(PPO()).generator.policy
    prompts = [list(range(5, 6 + n)) for n in (0, 3, 1, 7, 2, 5, 0, 4, 2, 1, 3, 0)]
    uniforms_BT = torch.rand((12, 40), generator=torch.Generator().manual_seed(3))
    sampler = Sampler(policy, 40)
    parts = [sampler.sample(prompts[i : i + 1], 1, uniforms_BT[i : i + 1]) for i in range(12)]
    assert len({part.mask_BT.shape[1] for part in parts}) > 1
    same(concatenated(parts, PAD), sampler.sample(prompts, 1, uniforms_BT))


@catches("scores awaited before the next part is sampled")
def test_each_part_is_handed_over_before_the_next_is_sampled():
    told = []

    class Telling(FakeScorer):
        def submit(self, prompts, completions, completion_ids, columns):
            told.append(("submitted", len(completions)))
            scores = self.score(prompts, completions, completion_ids, columns)
            return SimpleNamespace(result=lambda: told.append("scored") or scores)

    source = source_of(GRPO(group_size=4), Telling(), chunks=3)
    generate = source.generator.generate

    def telling(prompts, group_size, uniforms_BT):
        told.append("sampled")
        return generate(prompts, group_size, uniforms_BT)

    object.__setattr__(source.generator, "generate", telling)
    source.collect(1)
    begun = ["sampled", ("submitted", 8), "sampled", ("submitted", 8)]
    assert told == [*begun, "scored", "scored"]
