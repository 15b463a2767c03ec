"""Completions of prompts with their scores, as evaluations read them: over all ranks, in lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmpg.functional.sampled_estimates import pass_at_k
from lmpg.language.data.prompts import Prompt
from lmpg.language.models.reference import Reference
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rollouts.completed import Draw, Talk
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.score_processing import score_tensors
from lmpg.language.rollouts.scoring import with_rewards_of_turns

KEY = ("evaluate",)
"""Of the random numbers: the same in every evaluation with the same seed."""


@dataclass
class ScoredCompletions:
    """`samples` completions of each prompt, prompt-major, and what was found of each of them.

    prompts: as each began. lengths: tokens that the policy wrote. talks: how they went on, [] where
    each is one turn. kls: nats to the reference, where there is one. by_reward: scores of each
    reward, none without a scorer. logged: the numbers that functions logged, each with how many
    completions it is of. messages: what the rewards said. ruined: whether a token's probability was
    NaN.
    """

    samples: int
    prompts: list[Prompt] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    by_reward: dict[str, list[float | None]] = field(default_factory=dict)
    logged: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    kls: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    ruined: bool = False

    @property
    def distinct(self) -> float:
        """The share of distinct completions."""
        return len(set(self.texts)) / len(self.texts)

    def per_prompt(self, values: Sequence[float | None]) -> Tensor:
        """One number per completion as [P, samples], float64, NaN where there is none."""
        known = [float("nan") if x is None else float(x) for x in values]
        return torch.tensor(known, dtype=torch.float64).view(-1, self.samples)

    def pass_at(self, k: int, pass_score: float) -> Tensor:
        """The chance that one of k completions scores at least `pass_score`, for each prompt [P];
        completions without a score do not count."""
        scores_B, known_B = score_tensors(self.scores)
        shape = (-1, self.samples)
        passed_P = ((scores_B >= pass_score) & known_B).view(shape).sum(1)
        return pass_at_k(passed_P, known_B.view(shape).sum(1), k)

    @property
    def logged_means(self) -> dict[str, float]:
        """`logged/NAME`: means of what functions logged, by how many completions each is of, so
        that they do not depend on how many are scored at once."""
        return {
            f"logged/{name}": sum(x * n for x, n in numbers) / sum(n for _, n in numbers)
            for name, numbers in self.logged.items()
        }

    def add(self, other: ScoredCompletions) -> None:
        """Append the completions of further prompts."""
        of_rows = ("prompts", "texts", "ids", "lengths", "finished", "talks", "scores", "kls")
        for name in (*of_rows, "messages"):
            getattr(self, name).extend(getattr(other, name))
        for name, scores in other.by_reward.items():
            self.by_reward.setdefault(name, []).extend(scores)
        for name, numbers in other.logged.items():
            self.logged.setdefault(name, []).extend(numbers)
        self.ruined |= other.ruined


def scored_completions(
    generator: Generator,
    prompts: list[Prompt],
    samples: int,
    rows: int,
    scorer: Scorer | None = None,
    reference: Reference | None = None,
    *,
    greedy: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> ScoredCompletions:
    """`samples` completions of every prompt, the same on every rank; at most `rows` are sampled at
    once on each. greedy: the likeliest completion instead. progress: told how many prompts of this
    rank are done.
    """
    generator.publish()
    draw = generator.draw(KEY, len(prompts), samples, greedy)
    mine, found = generator.processes.share(prompts), ScoredCompletions(samples)
    together = max(1, rows // samples)
    with generator.processes.stopped_alike(), generator.sampler.reading_once():
        for start in range(0, len(mine), together):
            part = mine[start : start + together]
            of_part = draw.part(start, start + together)
            found.add(_of_part(generator, part, of_part, scorer, reference))
            progress(start + len(part))
    whole = ScoredCompletions(samples)
    for part_of_rank in generator.processes.gather_list([found]):
        whole.add(part_of_rank)
    return whole


def _of_part(
    generator: Generator,
    prompts: list[Prompt],
    draw: Draw,
    scorer: Scorer | None,
    reference: Reference | None,
) -> ScoredCompletions:
    completions = generator.completed(prompts, draw)
    part = ScoredCompletions(draw.group_size, texts=completions.texts, ids=completions.ids)
    part.prompts, part.talks = completions.prompts, completions.talks
    part.lengths = completions.samples.mask_BT.sum(1).tolist()
    part.finished = completions.finished
    part.ruined = bool(completions.samples.logprobs_BT.isnan().any())
    if scorer is not None:
        scores = with_rewards_of_turns(completions.submit_to(scorer).result(), completions)
        part.scores, part.by_reward = scores.totals, scores.by_reward
        part.messages, count = scores.messages, len(part.texts)
        part.logged = {name: [(x, count) for x in xs] for name, xs in scores.logged.items()}
    if reference is not None:
        part.kls = generator.sequence_kl(reference, completions.samples).tolist()
    return part


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself: the k of pass@k that are shown."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
