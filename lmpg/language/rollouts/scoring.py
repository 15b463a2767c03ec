"""Generate → score: the groups of completions that an iteration asks for, with their raw scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from lmpg.functional.advantages import group_centred
from lmpg.language.data.order import prompts_for_step
from lmpg.language.data.prompts import Prompt
from lmpg.language.rewards.results.scores import Scores, listed
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rollouts.completed import Completions, Draw, Key
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.score_processing import ScoreProcessing, score_tensors
from lmpg.runtime.machine import Stopwatch
from lmpg.settings.section import RunStopped
from lmpg.types import Algorithm

ENVIRONMENT = "environment"
"""What the rewards of turns are called beside others."""


@dataclass(frozen=True)
class ScoredGroups:
    """Whole groups of one rank's completions, prompt by prompt, with their scores.

    slots: the place of each group among those of all ranks. group_size: completions per group.
    greedy: the greedy completion of each group's prompt, for an algorithm that compares with it.
    """

    slots: list[int]
    group_size: int
    completions: Completions
    scores: Scores
    greedy: ScoredGroups | None = None

    def processed(self, processing: ScoreProcessing) -> ScoredGroups:
        """The same groups with processed scores."""
        return replace(
            self,
            scores=processing.processed(self.completions, self.scores, self.group_size),
            greedy=None if self.greedy is None else self.greedy.processed(processing),
        )

    def moved(self, slot_of: dict[int, int]) -> ScoredGroups:
        """The groups whose slot is a key of `slot_of`, each moved to the slot that it maps to."""
        kept = [i for i, slot in enumerate(self.slots) if slot in slot_of]
        rows = [i * self.group_size + j for i in kept for j in range(self.group_size)]
        return ScoredGroups(
            [slot_of[self.slots[i]] for i in kept],
            self.group_size,
            self.completions.rows(rows),
            self.scores.rows(rows),
            None if self.greedy is None else self.greedy.moved(slot_of),
        )


@dataclass(frozen=True)
class Sampled:
    """All that an iteration sampled.

    groups: this rank's groups of the rollout. scores, greedy_errors: of all completions that any
    rank sampled, in the rollout or not. processing: has seen these scores. has_spread: whether the
    scores within a group differ, for each group of the first round. metrics: further ones.
    """

    groups: list[ScoredGroups]
    scores: Scores
    greedy_errors: int
    processing: ScoreProcessing
    has_spread: list[bool]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupSampler:
    """Generates groups of completions, as many as fill a rollout, and scores them."""

    generator: Generator
    scorer: Scorer
    prompts: Sequence[Prompt]
    algorithm: Algorithm
    num_groups: int

    def sample(self, iteration: int, processing: ScoreProcessing, watch: Stopwatch) -> Sampled:
        """The groups of `iteration` (from 1); RunStopped if too many of them have no score."""
        key = ("sample", iteration)
        sampled = self.sample_round(key, self.prompts_of(iteration), processing, watch)
        self.stop_on_errors(iteration, [sampled])
        return sampled

    def prompts_of(self, iteration: int) -> list[int]:
        """Which prompts the groups of `iteration` complete, over all ranks."""
        seed = self.generator.seed
        return prompts_for_step(len(self.prompts), iteration - 1, self.num_groups, seed)

    def sample_round(
        self, key: Key, prompts: list[int], processing: ScoreProcessing, watch: Stopwatch
    ) -> Sampled:
        """One group for each of `prompts`, shared out among the ranks."""
        gather = self.generator.processes.gather_list
        self.generator.publish()
        with self.generator.processes.stopped_alike():  # servers answer each rank by itself
            mine = self._groups(key, prompts, processing.settings.chunks, watch)
        found = []  # of each rank that has a prompt
        for groups in mine:
            greedy_errors = 0 if groups.greedy is None else groups.greedy.scores.errors
            counted = processing.counted(groups.completions, groups.scores)
            found.append((groups.scores, greedy_errors, counted))
        parts, all_greedy_errors, all_counted = zip(*gather(found))
        processing = processing.after(list(chain.from_iterable(all_counted)))
        has_spread = [False] * len(prompts)
        if self.algorithm.group_size > 1:
            has_spread = gather([x for g in mine for x in _has_spread(g.processed(processing))])
        return Sampled(mine, Scores.joined(parts), sum(all_greedy_errors), processing, has_spread)

    def stop_on_errors(self, iteration: int, rounds: list[Sampled]) -> None:
        """RunStopped if more completions have no score than `rewards.max_error_share` allows."""
        errors, num_completions, messages = 0, 0, []
        for sampled in rounds:
            errors += sampled.scores.errors + sampled.greedy_errors
            num_completions += len(sampled.scores.totals)
            messages += sampled.scores.messages
        if "greedy" in self.algorithm.needs:
            num_completions += num_completions // self.algorithm.group_size
        allowed = rounds[0].processing.settings.max_error_share
        if errors <= allowed * num_completions:
            return
        raise RunStopped(
            f"step {iteration}: {errors} of {num_completions} responses could not be "
            f"scored, more than rewards.max_error_share = {allowed} allows. "
            f"Everything up to step {iteration - 1} is saved. Mend the reward, then go on with "
            f"--run.resume-anyway, as it will have changed. The reward said:{listed(messages)}"
        )

    def _groups(
        self, key: Key, prompts: list[int], chunks: int, watch: Stopwatch
    ) -> list[ScoredGroups]:
        """This rank's share of a round, generated and scored; nothing if it has no prompt."""
        share = self.generator.processes.share_of(len(prompts))
        if not share:
            return []
        group_size, mine = self.algorithm.group_size, prompts[share.start : share.stop]
        draw = self.generator.draw(key, len(prompts), group_size)
        completions, scores = self._scored(mine, draw, chunks, watch)
        greedy = None
        if "greedy" in self.algorithm.needs:
            distinct, of_group = list(dict.fromkeys(mine)), list(range(len(mine)))
            if self.generator.environments is not None:  # each begins as its group does
                distinct = mine
            else:
                of_group = [distinct.index(i) for i in mine]
            best, its_scores = self._scored(distinct, draw.greedily(), 1, watch)
            greedy = ScoredGroups(list(share), 1, best.rows(of_group), its_scores.rows(of_group))
        return [ScoredGroups(list(share), group_size, completions, scores, greedy)]

    def _scored(
        self,
        prompts: list[int],
        draw: Draw,
        chunks: int,
        watch: Stopwatch,
    ) -> tuple[Completions, Scores]:
        """A group of completions of each prompt, with their scores.

        Prompts are divided into `chunks` parts; the rewards score one part while the next is
        generated, and only the wait after the last counts as time/score. The completions are the
        same whatever the number of parts.
        """
        parts, pending = [], []
        with watch("time/sample"):
            for part, of_part in self._chunked(prompts, draw, chunks):
                parts.append(self.generator.completed(part, of_part))
                pending.append(parts[-1].submit_to(self.scorer))
            completions = Completions.joined(parts, self.generator.policy.pad_token_id)
        with watch("time/score"):
            found = Scores.joined([x.result() for x in pending])
            return completions, with_rewards_of_turns(found, completions)

    def ask_ahead(self, iteration: int, chunks: int) -> None:
        """Let servers sample this rank's share of `iteration` already; `sample` asks for the
        same."""
        prompts, group_size = self.prompts_of(iteration), self.algorithm.group_size
        share = self.generator.processes.share_of(len(prompts))
        draw = self.generator.draw(("sample", iteration), len(prompts), group_size)
        mine, sampler = prompts[share.start : share.stop], self.generator.sampler
        for part, of_part in self._chunked(mine, draw, chunks):
            sampler.ask_ahead([prompt.ids for prompt in part], group_size, of_part.uniforms())

    def _chunked(
        self, prompts: list[int], draw: Draw, chunks: int
    ) -> Iterator[tuple[list[Prompt], Draw]]:
        """The prompts in `chunks` parts, with the random numbers of their completions."""
        size = max(1, -(-len(prompts) // chunks))
        for start in range(0, len(prompts), size):
            part = [self.prompts[i] for i in prompts[start : start + size]]
            yield part, draw.part(start, start + size)


def with_rewards_of_turns(scores: Scores, completions: Completions) -> Scores:
    """The scores with what environments gave: each turn's reward on its last token, their sum as a
    reward called `environment`; None for rows that they lost."""
    talks = completions.talks
    if not talks:
        return scores
    given = [None if talk.error else talk.reward for talk in talks]
    pairs = list(zip(scores.totals, given))
    totals = [None if total is None or x is None else total + x for total, x in pairs]
    steps = [
        [(turn.end - 1, turn.reward or 0.0) for turn in talk.turns] if total is not None else []
        for total, talk in zip(totals, talks)
    ]
    lost = Counter(talk.error for talk in talks if talk.error)
    said = [
        f"{ENVIRONMENT}: {times} of {len(talks)} without a score: {error}"
        for error, times in lost.items()
    ]
    return replace(
        scores,
        totals=totals,
        by_reward={**scores.by_reward, ENVIRONMENT: given},
        errors=totals.count(None),
        messages=[*scores.messages, *said],
        steps=steps,
    )


def _has_spread(groups: ScoredGroups) -> list[bool]:
    """Whether the scores of each group differ; one without a score does not count."""
    scores_B, known_B = score_tensors(groups.scores.totals)
    shape = (-1, groups.group_size)
    return (group_centred(scores_B.float().view(shape), known_B.view(shape)) != 0).any(1).tolist()
