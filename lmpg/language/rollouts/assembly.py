"""What was sampled and scored, recorded as a rollout: log-probs, values, rewards on tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmpg.functional.advantages import next_in_mask
from lmpg.language.models.policy import Reference
from lmpg.language.rewards.scorer import Scores, Step
from lmpg.language.rollouts.generation import Responder, Responses
from lmpg.language.rollouts.score_processing import Shaping
from lmpg.language.sampling.samples import Samples
from lmpg.types import Algorithm, Rollout, joined

SHOWN = 4


@dataclass(frozen=True)
class Greedy:
    """Greedy responses to the distinct prompts of a batch; `which` is that of each group."""

    responses: Responses
    scores: Scores
    which: list[int]

    @property
    def errors(self) -> int:
        """Groups whose greedy response has no score."""
        return sum(self.scores.totals[i] is None for i in self.which)


@dataclass(frozen=True)
class Batch:
    """Whole groups of this rank that were sampled together, with their scores.

    places: the round that they belong to and their number in it, counted over all ranks.
    """

    places: list[Place]
    responses: Responses
    scores: Scores
    greedy: Greedy | None = None

    def shown(self, row: int) -> dict[str, Any]:
        """What samples.jsonl says of a response."""
        prompt, completion = self.responses.prompts[row].prompt, self.responses.completions[row]
        return {"prompt": prompt, "completion": completion, "score": self.scores.totals[row]}


@dataclass(frozen=True)
class Recorded:
    """Rows of the rollout with what is told of them: raw scores, whether they ended by EOS.

    groups: the place of each row's group in the rollout. shown: for samples.jsonl, of a few.
    """

    groups: list[int]
    rollout: Rollout
    raw: list[float | None]
    finished: list[bool]
    shown: list[dict[str, Any]]

    @classmethod
    def in_order(cls, parts: list[Recorded]) -> Recorded:
        """The rows of all parts, by the place of their group."""
        groups = [g for part in parts for g in part.groups]
        order = sorted(range(len(groups)), key=groups.__getitem__)

        def ordered(name: str) -> list[Any]:
            rows = [x for part in parts for x in getattr(part, name)]
            return [rows[i] for i in order]

        rollout = joined([part.rollout for part in parts])
        if order != list(range(len(order))):
            rollout = rollout.rows(torch.tensor(order))
        names = ("groups", "raw", "finished", "shown")
        return cls(rollout=rollout, **{name: ordered(name) for name in names})


@dataclass(frozen=True)
class Recorder:
    """Evaluates responses once more where that is needed, and lays out their rewards.

    sampled_will_do: see `lmpg.training.update.Updater.old_is_new`.
    """

    responder: Responder
    reference: Reference | None
    algorithm: Algorithm
    sampled_will_do: bool = False

    def recorded(
        self, batch: Batch, shaping: Shaping, place_of: dict[Place, int]
    ) -> Recorded | None:
        """The rows of those groups that have a place in the rollout; None where none has."""
        size = self.algorithm.group_size
        kept = [i for i, place in enumerate(batch.places) if place in place_of]
        if not kept:
            return None
        rows = [i * size + j for i in kept for j in range(size)]
        responses = batch.responses
        shaped = shaping.shaped(responses, batch.scores)
        totals = [shaped.totals[row] for row in rows]
        greedy = self._greedy_scores(batch.greedy, shaping, kept)
        if greedy is not None:
            totals = [None if g is None else total for total, g in zip(totals, greedy)]
        rollout = self._rollout(
            responses.samples.rows(torch.tensor(rows)),
            totals,
            [shaped.steps[row] for row in rows],
            None if greedy is None else _numbers(greedy).float(),
        )
        if shaping.settings.truncated == "bootstrap":
            rollout = self._bootstrapped(rollout, responses.samples.rows(torch.tensor(rows)))
        return Recorded(
            [place_of[batch.places[i]] for i in kept for _ in range(size)],
            rollout,
            [batch.scores.totals[row] for row in rows],
            [responses.finished[row] for row in rows],
            [batch.shown(r) if place_of[batch.places[r // size]] < SHOWN else {} for r in rows],
        )

    def _greedy_scores(
        self, greedy: Greedy | None, shaping: Shaping, kept: list[int]
    ) -> list[float | None] | None:
        """Of each row of the kept groups, shaped as all scores are."""
        if greedy is None:
            return None
        totals = shaping.shaped(greedy.responses, greedy.scores).totals
        return [totals[greedy.which[i]] for i in kept for _ in range(self.algorithm.group_size)]

    def _rollout(
        self,
        samples: Samples,
        totals: list[float | None],
        steps: list[list[Step]],
        greedy_scores_B: Tensor | None,
    ) -> Rollout:
        """The rows, on the CPU; the episode ends with the last chosen token."""
        ref_logprobs_BT = self._reference_logprobs(samples)
        # after the reference, as this may keep a graph for the update
        old = self.responder.recorded(samples, self.sampled_will_do)
        mask_BT = samples.mask_BT.cpu()
        last_BT = mask_BT & (mask_BT.flip(1).cumsum(1).flip(1) == 1)
        values_BT = None if old.values_BT is None else old.values_BT.cpu()
        return Rollout(
            inputs={name: x.cpu() for name, x in samples.inputs.items()},
            mask_BT=mask_BT,
            logprobs_BT=old.logprobs_BT.cpu(),
            rewards_BT=token_rewards(last_BT, totals, steps),
            terminated_BT=last_BT,
            ended_BT=last_BT,
            scorable_B=torch.tensor([x is not None for x in totals], dtype=torch.bool),
            values_BT=values_BT,
            next_values_BT=None if values_BT is None else next_in_mask(values_BT, mask_BT),
            ref_logprobs_BT=ref_logprobs_BT,
            greedy_scores_B=greedy_scores_B,
        )

    def _reference_logprobs(self, samples: Samples) -> Tensor | None:
        if "reference" not in self.algorithm.needs:
            return None
        if self.reference is None:
            raise ValueError(f"{type(self.algorithm).__name__} needs a reference, there is none")
        return self.responder.reference_logprobs(self.reference, samples).cpu()

    def _bootstrapped(self, rollout: Rollout, samples: Samples) -> Rollout:
        """What was cut at the limit ends without being over: the critic says what would come."""
        cut_B = ~samples.finished_B.cpu()
        if rollout.next_values_BT is None:
            raise ValueError("rewards.truncated = bootstrap needs the values of a critic")
        if not cut_B.any():
            return rollout
        after_B = torch.zeros(len(cut_B))
        after_B[cut_B] = self.responder.values_after(samples.rows(cut_B.nonzero()[:, 0])).cpu()
        end_BT = rollout.ended_BT & cut_B[:, None]
        return replace(
            rollout,
            terminated_BT=rollout.terminated_BT & ~end_BT,
            next_values_BT=torch.where(end_BT, after_B[:, None], rollout.next_values_BT),
        )


def token_rewards(last_BT: Tensor, totals: list[float | None], steps: list[list[Step]]) -> Tensor:
    """Rewards [B, T]: `steps` on their tokens, the rest of each total on the last token."""
    rewards_BT = torch.zeros(last_BT.shape, dtype=torch.float64)
    for b, row in enumerate(steps):
        for t, reward in row:
            rewards_BT[b, t] = reward
    rest_B = _numbers(totals) - rewards_BT.sum(1)
    return (rewards_BT + last_BT * rest_B[:, None]).float()


def _numbers(scores: list[float | None]) -> Tensor:
    """Scores [B], 0 where there is none."""
    return torch.tensor([0.0 if x is None else x for x in scores], dtype=torch.float64)


Place = tuple[int, int]  # (round, group of that round)
