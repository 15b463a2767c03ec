"""Dynamic sampling (arXiv 2503.14476, section 3.2): groups without spread are sampled again.

A group whose completions all have the same score teaches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmpg.language.data.order import other_prompts
from lmpg.language.rewards.results.scores import Scores
from lmpg.language.rollouts.score_processing import ScoreProcessing
from lmpg.language.rollouts.scoring import GroupSampler, Sampled, ScoredGroups
from lmpg.runtime.machine import Stopwatch


@dataclass(frozen=True)
class DynamicSampling:
    """Wraps a `GroupSampler`: fills the slots of groups without spread with groups of other
    prompts, sampled in at most `max_refills` further rounds.

    A slot for which no group with a spread was found keeps its first group, so the size of a
    rollout never changes.
    """

    sampler: GroupSampler
    max_refills: int

    def sample(self, iteration: int, processing: ScoreProcessing, watch: Stopwatch) -> Sampled:
        """The groups of `iteration`, from the first round and all refills; see
        `GroupSampler.sample`."""
        sampler, seed = self.sampler, self.sampler.generator.seed
        rounds = [sampler.sample(iteration, processing, watch)]
        used = sampler.prompts_of(iteration)
        filled_by = [(0, group) for group in range(sampler.num_groups)]  # slot → (round, group)
        missing = [slot for slot, spread in enumerate(rounds[0].has_spread) if not spread]
        while missing and len(rounds) <= self.max_refills:
            others = other_prompts(len(sampler.prompts), iteration - 1, used, len(missing), seed)
            used = used + others
            number = len(rounds)
            key = ("sample", iteration, "refill", number)
            rounds.append(sampler.sample_round(key, others, rounds[-1].processing, watch))
            sampler.stop_on_errors(iteration, rounds)
            found = [group for group, spread in enumerate(rounds[-1].has_spread) if spread]
            for slot, group in zip(missing, found):
                filled_by[slot] = (number, group)
            missing = missing[len(found) :]
        return _joined(rounds, filled_by)

    def ask_ahead(self, iteration: int, chunks: int) -> None:
        """Not here: which prompts replace others is known too late."""
        raise ValueError("sampling.ahead with sampling.max_refills")


def _joined(rounds: list[Sampled], filled_by: list[tuple[int, int]]) -> Sampled:
    """All rounds as one: the groups that fill a slot, and the scores of all groups."""
    groups: list[ScoredGroups] = []
    for number, sampled in enumerate(rounds):
        slot_of = {group: slot for slot, (r, group) in enumerate(filled_by) if r == number}
        groups += [
            x.moved(slot_of) for x in sampled.groups if not slot_of.keys().isdisjoint(x.slots)
        ]
    num_sampled = sum(len(x.has_spread) for x in rounds)
    return replace(
        rounds[0],
        groups=groups,
        scores=Scores.joined([sampled.scores for sampled in rounds]),
        greedy_errors=sum(sampled.greedy_errors for sampled in rounds),
        processing=rounds[-1].processing,
        metrics={
            "sampling/refills": float(len(rounds) - 1),
            "sampling/dropped_groups": float(num_sampled - len(filled_by)),
        },
    )
