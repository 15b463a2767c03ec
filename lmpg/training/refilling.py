"""Dynamic sampling (arXiv 2503.14476, section 3.2): groups without spread make room for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# (number of the round, how many groups) → which of the groups have a spread
Round = Callable[[int, int], list[bool]]
Place = tuple[int, int]  # (round, group of that round)


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
