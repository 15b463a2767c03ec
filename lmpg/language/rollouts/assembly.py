"""Assembly: makes a rollout of scored completions, with log-probs, values and rewards on tokens;
and the metrics of a rollout."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from lmpg.functional.advantages import next_in_mask
from lmpg.functional.kl import k3
from lmpg.functional.losses import log_ratio
from lmpg.functional.masking import masked_mean
from lmpg.language.models.reference import Reference
from lmpg.language.rewards.results.scores import Step
from lmpg.language.rewards.settings import Truncated
from lmpg.language.rollouts.completed import Talk
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.score_processing import score_tensors
from lmpg.language.rollouts.scoring import ScoredGroups
from lmpg.language.sampling.samples import Samples, stacked
from lmpg.types import Algorithm, Rollout


@dataclass(frozen=True)
class RolloutPart:
    """Rows of a rollout, with the raw scores and EOS flags that are logged but not learned from.

    slots: the place of each row's group in the rollout. shown: the row's entry in samples.jsonl, {}
    for all but the first rows; nothing where none are written. ends: of each row its turns, how
    many of them were cut, why it ended and its tokens with observations; nothing without turns.
    """

    slots: list[int]
    rollout: Rollout
    raw: list[float | None]
    finished: list[bool]
    shown: list[dict[str, Any]]
    ends: list[tuple[int, int, str, int]] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: list[RolloutPart]) -> RolloutPart:
        """The rows of all parts, in the order of their slots: the same for any number of ranks."""
        if len(parts) == 1:
            return parts[0]
        slots = [slot for part in parts for slot in part.slots]
        order = sorted(range(len(slots)), key=slots.__getitem__)
        rollout = _joined([part.rollout for part in parts])
        if order != list(range(len(order))):
            rollout = rollout.rows(torch.tensor(order))

        def ordered(name: str) -> list[Any]:
            rows = [x for part in parts for x in getattr(part, name)]
            return [rows[i] for i in order if rows]

        names = ("slots", "raw", "finished", "shown", "ends")
        return cls(rollout=rollout, **{name: ordered(name) for name in names})


def assembled(
    raw: ScoredGroups,
    processed: ScoredGroups,
    generator: Generator,
    reference: Reference | None,
    algorithm: Algorithm,
    shown: list[dict[str, Any]],
    *,
    truncated: Truncated,
) -> RolloutPart:
    """The part of a rollout that these groups form; `raw` and `processed` are the same groups with
    raw and with processed scores.

    shown: their rows of samples.jsonl. truncated: where it is bootstrap, the critic's value stands
    in for the rest of a truncated completion; where it is mask_loss, such a completion is not
    learned from.
    """
    completions, size = raw.completions, raw.group_size
    slots = [slot for slot in raw.slots for _ in range(size)]
    totals = processed.scores.totals
    greedy = None
    if processed.greedy is not None:
        greedy = [x for x in processed.greedy.scores.totals for _ in range(size)]
        totals = [None if g is None else total for total, g in zip(totals, greedy)]
    rollout = _rollout(
        completions.samples, totals, processed.scores.steps, generator, reference, algorithm
    )
    if greedy is not None:
        rollout = replace(rollout, greedy_scores_B=score_tensors(greedy)[0].float())
    if completions.talks:
        rollout = _with_turns(rollout, completions.talks)
    if truncated == "mask_loss":
        rollout = replace(rollout, learned_B=completions.samples.finished_B.cpu())
    if truncated == "bootstrap":
        rollout = _bootstrapped(rollout, completions.samples, generator)
    ends = [
        (len(talk.turns), sum(turn.cut for turn in talk.turns), talk.end, len(ids))
        for talk, ids in zip(completions.talks, completions.ids)
    ]
    return RolloutPart(slots, rollout, raw.scores.totals, completions.finished, shown, ends)


def _with_turns(rollout: Rollout, talks: list[Talk]) -> Rollout:
    """Which turn of the policy each of its steps belongs to, and from which state that started."""
    numbers_BT = rollout.inputs["response_turns"]
    states_BT = torch.zeros_like(numbers_BT)
    for b, talk in enumerate(talks):
        for turn in talk.turns:
            states_BT[b, turn.start : turn.end] = turn.state
    return replace(rollout, turns_BT=numbers_BT - 1, states_BT=states_BT)


def _rollout(
    samples: Samples,
    totals: list[float | None],
    steps: list[list[Step]],
    generator: Generator,
    reference: Reference | None,
    algorithm: Algorithm,
) -> Rollout:
    """The rows, on the CPU; an episode ends with its last chosen token."""
    ref_logprobs_BT = None
    if "reference" in algorithm.needs:
        if reference is None:
            raise ValueError(f"{type(algorithm).__name__} needs a reference, there is none")
        ref_logprobs_BT = generator.evaluated(samples.inputs, reference.logprobs).cpu()
    # after the reference, as this may keep a graph for the update
    old = generator.old_evaluation(samples)
    values_BT = None if old.values_BT is None else old.values_BT.cpu()
    compared = generator.old_logprobs.compared and generator.sampler.comparable
    mask_BT = samples.mask_BT.cpu()
    last_BT = mask_BT & (mask_BT.flip(1).cumsum(1).flip(1) == 1)
    totals_B, scorable_B = score_tensors(totals)
    return Rollout(
        inputs={name: x.cpu() for name, x in samples.inputs.items()},
        mask_BT=mask_BT,
        logprobs_BT=old.logprobs_BT.cpu(),
        rewards_BT=token_rewards(last_BT, totals_B, steps),
        terminated_BT=last_BT,
        ended_BT=last_BT,
        scorable_B=scorable_B,
        values_BT=values_BT,
        next_values_BT=None if values_BT is None else next_in_mask(values_BT, mask_BT),
        ref_logprobs_BT=ref_logprobs_BT,
        sampler_logprobs_BT=samples.logprobs_BT.cpu() if compared else None,
    )


def _bootstrapped(rollout: Rollout, samples: Samples, generator: Generator) -> Rollout:
    """Bootstraps truncated completions: they end without terminating, and the critic's value after
    the last token stands in for the rest."""
    cut_B = ~samples.finished_B.cpu()
    if rollout.next_values_BT is None:
        raise ValueError("rewards.truncated = bootstrap needs the values of a critic")
    if not cut_B.any():
        return rollout
    after_B = torch.zeros(len(cut_B))
    after_B[cut_B] = generator.values_after(samples.rows(cut_B.nonzero()[:, 0])).cpu()
    end_BT = rollout.ended_BT & cut_B[:, None]
    return replace(
        rollout,
        terminated_BT=rollout.terminated_BT & ~end_BT,
        next_values_BT=torch.where(end_BT, after_B[:, None], rollout.next_values_BT),
    )


def token_rewards(last_BT: Tensor, totals_B: Tensor, steps: list[list[Step]]) -> Tensor:
    """Rewards [B, T]: process rewards on their tokens, the rest of each total on the last token."""
    rewards_BT = torch.zeros(last_BT.shape, dtype=torch.float64)
    for b, row in enumerate(steps):
        for t, reward in row:
            rewards_BT[b, t] = reward
    rest_B = totals_B - rewards_BT.sum(1)
    return (rewards_BT + last_BT * rest_B[:, None]).float()


def rollout_metrics(part: RolloutPart, *, processed: bool) -> dict[str, float]:
    """Score, KL and entropy per completion (nats), and lengths (tokens); names as in TRL.

    processed: whether the scores in the rollout can differ from the raw ones.
    """
    rollout, finished = part.rollout, part.finished
    lengths_B = rollout.mask_BT.sum(1)
    raw_B = score_tensors(part.raw)[0].float()
    metrics = {
        "objective/scores": float(masked_mean(raw_B, rollout.scorable_B)),
        "objective/entropy": _mean_sum(-rollout.logprobs_BT, rollout.mask_BT),
        "completions/mean_length": float(lengths_B.double().mean()),
        "completions/min_length": float(lengths_B.min()),
        "completions/max_length": float(lengths_B.max()),
        "completions/clipped_ratio": 1 - sum(finished) / len(finished),
    }
    if processed:
        shaped = masked_mean(rollout.scores_B, rollout.scorable_B)
        metrics["objective/shaped_scores"] = float(shaped)
    if rollout.greedy_scores_B is not None:
        greedy = masked_mean(rollout.greedy_scores_B, rollout.scorable_B)
        metrics["objective/greedy_scores"] = float(greedy)
    if rollout.ref_logprobs_BT is not None:
        log_ratio_BT = rollout.logprobs_BT - rollout.ref_logprobs_BT
        metrics["objective/kl"] = _mean_sum(log_ratio_BT, rollout.mask_BT)
    if rollout.sampler_logprobs_BT is not None:
        old_BT, mask_BT = rollout.logprobs_BT, rollout.mask_BT
        apart_BT = k3(rollout.sampler_logprobs_BT, old_BT)
        ratio_BT = log_ratio(old_BT, rollout.sampler_logprobs_BT).exp()
        metrics["sampler/kl"] = float(masked_mean(apart_BT, mask_BT))
        metrics["sampler/ratio_max"] = float(torch.where(mask_BT, ratio_BT, 0).max())
    return metrics | _turn_metrics(part.ends)


def _turn_metrics(ends: list[tuple[int, int, str, int]]) -> dict[str, float]:
    """Of rows of several turns: means per row, how many rows ended otherwise than their environment
    says, and the share of turns that were cut."""
    if not ends:
        return {}
    turns, cut, whys, tokens = zip(*ends)
    return {
        "completions/clipped_ratio": sum(cut) / max(1, sum(turns)),
        "environment/turns": sum(turns) / len(ends),
        "environment/tokens": sum(tokens) / len(ends),
        "environment/truncated": sum(x not in ("terminated", "error") for x in whys) / len(ends),
        "environment/errors": float(whys.count("error")),
    }


def _mean_sum(x_BT: Tensor, mask_BT: Tensor) -> float:
    """Mean over all completions of the sum over their steps in the mask."""
    return float(torch.where(mask_BT, x_BT, 0).sum(1).double().mean())


def _joined(rollouts: list[Rollout]) -> Rollout:
    """All rows of several rollouts, one after the other, padded to the longest; `prompt_ids` on the
    left, everything else on the right."""

    def together(name: str, values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {k: together(k, [value[k] for value in values]) for k in values[0]}
        if not isinstance(values[0], Tensor) or values[0].ndim == 0:
            return values[0]
        return stacked(values, 0, left=name == "prompt_ids")

    names = [x.name for x in fields(Rollout)]
    found = {name: together(name, [getattr(r, name) for r in rollouts]) for name in names}
    return Rollout(**found)
