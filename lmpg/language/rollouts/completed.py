"""Completions of prompts, their turns, and the random numbers that they come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lmpg.language.data.chat import Messages
from lmpg.language.data.prompts import Prompt
from lmpg.language.rewards.scorer import PendingScores, Scorer
from lmpg.language.sampling.samples import Samples, concatenated
from lmpg.runtime.seeding import generator

Key = tuple[int | str, ...]


@dataclass(frozen=True)
class Turn:
    """A turn of the policy: tokens [start, end) of its row's response, what it wrote, and what the
    environment gave for it.

    state: a number of the state that it started from. before: the observation that it answers,
    None in the first turn, which answers the prompt. calls: of tools, as the environment tells.
    cut: whether a limit cut it off.
    """

    start: int
    end: int
    text: str
    reward: float | None
    state: int
    before: str | Messages | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    cut: bool = False


def state_number(info: dict[str, Any], observation: str | Messages) -> int:
    """A number of the state that an environment is in, equal for equal ones: what its info calls
    `state`, else what it shows."""
    if "state" in info:
        text = str(info["state"])
    else:
        text = json.dumps(observation, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass(frozen=True)
class Talk:
    """How a row went on: its turns; all that was said after the prompt, as messages where the
    prompt is such; why it ended (terminated, truncated, max_turns, max_tokens, error).

    error: why the row is lost, None where it is not.
    """

    turns: list[Turn]
    said: Messages | None
    end: str
    error: str | None = None

    @property
    def reward(self) -> float:
        """The sum of the rewards of its turns."""
        return sum(turn.reward or 0.0 for turn in self.turns)


def turns_shown(talk: Talk) -> dict[str, Any]:
    """A row's turns with what they answered (the first one the prompt), and why it ended."""
    turns = []
    for turn in talk.turns:
        shown: dict[str, Any] = {"text": turn.text, "reward": turn.reward}
        if turn.before is not None:
            shown = {"observation": turn.before} | shown
        turns.append(shown | ({"calls": turn.calls} if turn.calls else {}))
    if talk.error is not None and turns:
        turns[-1]["error"] = talk.error
    lost = {} if talk.error is None else {"error": talk.error}
    return {"turns": turns, "end": talk.end, **lost}


@dataclass(frozen=True)
class Draw:
    """The random numbers of a batch of completions: they follow from the key, the prompt's place in
    the batch of all ranks, the sample and the turn, and from nothing else.

    prompts: places of those that are meant. greedy: the likeliest tokens are taken instead.
    """

    key: Key
    num_prompts: int
    group_size: int
    num_steps: int
    prompts: range
    greedy: bool = False

    def uniforms(self, turn: int = 0) -> Tensor | None:
        """One number for each of the turn's steps in each row, [B, T]."""
        if self.greedy:
            return None
        key, size = (*self.key, "turn", turn) if turn else self.key, self.group_size
        shape = (self.num_prompts * size, self.num_steps)
        drawn = torch.rand(shape, generator=generator(*key))
        return drawn[self.prompts.start * size : self.prompts.stop * size]

    def seeds(self) -> list[int]:
        """One for the environments of each prompt, the same for all its samples."""
        found = [generator(*self.key, "environment", i).initial_seed() for i in self.prompts]
        return [seed % 2**31 for seed in found]

    def greedily(self) -> Draw:
        """One completion of each prompt, of the likeliest tokens, in the same environments."""
        return replace(self, group_size=1, greedy=True)

    def part(self, start: int, stop: int) -> Draw:
        """Of the prompts [start, stop) among those that are meant."""
        return replace(self, prompts=self.prompts[start:stop])


@dataclass(frozen=True)
class Completions:
    """What one rank generated; row b completes `prompts[b]`.

    samples: padded token ids, with the numbers that the sampler recorded. ids: the same token ids
    without padding, EOS included. finished: whether the row ended by EOS or a stop string, not at
    the length limit. talks: how each went on over several turns, [] where there is one; then texts
    and ids hold all of them, and a row has finished where its environment says so.
    """

    prompts: list[Prompt]
    samples: Samples
    texts: list[str]
    ids: list[list[int]]
    finished: list[bool]
    talks: list[Talk] = field(default_factory=list)

    def submit_to(self, scorer: Scorer) -> PendingScores:
        """Start scoring the completions; the result is there when the scorer has finished."""
        names: set[str] = set()
        for prompt in self.prompts:
            names |= prompt.columns.keys()
        columns = {}
        for name in sorted(names):
            columns[name] = [p.columns.get(name) for p in self.prompts]
        written: list[str | Messages] = [*self.texts]
        for b, talk in enumerate(self.talks):
            written[b] = talk.said or written[b]
        return scorer.submit([p.prompt for p in self.prompts], written, self.ids, columns)

    def rows(self, index: list[int]) -> Completions:
        """The completions with only the rows in `index`, in that order."""
        return Completions(
            [self.prompts[i] for i in index],
            self.samples.rows(torch.tensor(index)),
            [self.texts[i] for i in index],
            [self.ids[i] for i in index],
            [self.finished[i] for i in index],
            [self.talks[i] for i in index if self.talks],
        )

    @classmethod
    def joined(cls, parts: list[Completions], pad_token_id: int) -> Completions:
        """The rows of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]

        def together(name: str) -> list[Any]:
            return list(chain.from_iterable(getattr(part, name) for part in parts))

        samples = concatenated([x.samples for x in parts], pad_token_id)
        names = ("prompts", "texts", "ids", "finished", "talks")
        return cls(samples=samples, **{name: together(name) for name in names})
