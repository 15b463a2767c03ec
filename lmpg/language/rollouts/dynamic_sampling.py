"""The rounds of sampling that one step's rollout comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lmpg.functional.advantages import group_centred
from lmpg.language.rewards.scorer import Scores
from lmpg.language.rollouts.assembly import Batch, Place
from lmpg.language.rollouts.score_processing import Shaping
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped


class Rounds:
    """All that was sampled and scored so far in a step.

    draw: (round, how many groups) → this rank's share of them.
    shaping: has seen all of it. batches: this rank's. scores: of all ranks.
    """

    def __init__(
        self,
        step: int,
        group_size: int,
        max_error_share: float,
        shaping: Shaping,
        processes: Processes,
        draw: Callable[[int, int], list[Batch]],
    ) -> None:
        self._step, self._group_size = step, group_size
        self._max_error_share = max_error_share
        self._processes = processes
        self._draw = draw
        self.shaping = shaping
        self.batches: list[Batch] = []
        self.scores: list[Scores] = []
        self.greedy_errors = 0

    def sample(self, number: int, count: int) -> list[bool]:
        """One more round of `count` groups, over all ranks; says which have a spread."""
        mine = self._draw(number, count)
        gather = self._processes.gather_list
        self.batches += mine
        self.scores += gather([batch.scores for batch in mine])
        greedy = [batch.greedy for batch in mine if batch.greedy is not None]
        self.greedy_errors += sum(gather([x.errors for x in greedy]))
        self._stop_on_errors(has_greedy=any(gather([bool(greedy)])))
        counted = [self.shaping.counted(batch.responses, batch.scores) for batch in mine]
        self.shaping = self.shaping.after(gather([x for part in counted for x in part]))
        return gather([spread for batch in mine for spread in self._spreads(batch)])

    def _spreads(self, batch: Batch) -> list[bool]:
        totals = self.shaping.shaped(batch.responses, batch.scores).totals
        valid_B = torch.tensor([x is not None for x in totals], dtype=torch.bool)
        scores_B = torch.tensor([0.0 if x is None else x for x in totals])
        shape = (-1, self._group_size)
        return (group_centred(scores_B.view(shape), valid_B.view(shape)) != 0).any(1).tolist()

    def _stop_on_errors(self, has_greedy: bool) -> None:
        errors = sum(x.errors for x in self.scores) + self.greedy_errors
        asked = sum(len(x.totals) for x in self.scores)
        asked += asked // self._group_size if has_greedy else 0
        if errors <= self._max_error_share * asked:
            return
        said = "\n  ".join([message for x in self.scores for message in x.messages][:5])
        raise RunStopped(
            f"step {self._step}: {errors} of {asked} responses could not be "
            f"scored, more than rewards.max_error_share = {self._max_error_share} allows. "
            f"Everything up to step {self._step - 1} is saved. Mend the reward, then go on with "
            f"--run.resume. The reward said:\n  {said}"
        )


# (number of the round, how many groups) → which of the groups have a spread
Round = Callable[[int, int], list[bool]]


@dataclass(frozen=True)
class Filling:
    """Which group has which place in the rollout, and what it took to get there.

    without_spread: share of the first round's groups, those of the policy as it comes.
    """

    places: list[Place]
    rounds: int
    sampled: int
    without_spread: float

    def metrics(self) -> dict[str, float]:
        """Extra rounds, and groups that were sampled in vain."""
        dropped = self.sampled - len(self.places)
        return {"sampling/refills": float(self.rounds), "sampling/dropped_groups": float(dropped)}


def filled(num_groups: int, max_refills: int, sample: Round) -> Filling:
    """Sample `num_groups` groups; in at most `max_refills` further rounds as many others as have
    no spread.

    The places that no group with a spread was found for keep their first group, so the size of
    a rollout never changes.
    """
    places = [(0, group) for group in range(num_groups)]
    missing = [group for group, spread in enumerate(sample(0, num_groups)) if not spread]
    share, rounds, sampled = len(missing) / num_groups, 0, num_groups
    while missing and rounds < max_refills:
        rounds += 1
        sampled += len(missing)
        spread = sample(rounds, len(missing))
        found = [(rounds, group) for group in range(len(missing)) if spread[group]]
        for place, new in zip(missing, found):
            places[place] = new
        missing = missing[len(found) :]
    return Filling(places, rounds, sampled, share)
