"""Completions of several turns: the policy writes, its environment answers, until each row ends.

All rows go on together. A row's ids are only ever appended to: what the policy sampled, and what
stands between its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lmpg.language.data.chat import Messages
from lmpg.language.data.prompts import Prompt
from lmpg.language.data.tokenizing import completion_texts
from lmpg.language.environments.continuation import Continuation
from lmpg.language.environments.interface import Outcome, beginning
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rollouts.completed import Completions, Draw, Talk, Turn, state_number
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import Samples
from lmpg.language.sampling.turn_by_turn import Turns, samples_of_turns
from lmpg.settings.section import UserError

PART = 16
"""Characters per token that would fit, of the part of a long observation that is read first; a
token has about four."""


class Pool(Protocol):
    """Environments of a rollout's rows; see `lmpg.language.environments.pool`."""

    def reset(self, rows: list[dict[str, Any]], seeds: list[int]) -> list[Outcome]:
        """Begins an episode in each row."""
        ...

    def step(self, actions: dict[int, str]) -> dict[int, Outcome]:
        """What follows the turn of each of these rows."""
        ...

    def try_episode(self, row: dict[str, Any]) -> None:
        """Refuses environments that cannot go on."""
        ...

    def keep_sources(self, folder: Path) -> None:
        """Writes to `folder` the local modules that were imported."""
        ...

    def close(self) -> None:
        """Ends the environments."""
        ...


@dataclass(frozen=True)
class Environments:
    """Whom the policy talks to. max_turns: of the policy in a row. max_tokens: of a whole row; 0:
    as many as the model's context holds. observes_end: whether a row that was truncated ends with
    the last observation, from which the critic can tell what would have come.
    """

    pool: Pool
    continuation: Continuation
    max_turns: int
    max_tokens: int
    observes_end: bool = False

    def most_tokens(self, policy: CausalLMPolicy) -> int:
        """Tokens that a whole row may have."""
        return min(self.max_tokens or policy.context_length, policy.context_length)

    def first_prompts(self, prompts: Sequence[Prompt], seeds: list[int]) -> list[Prompt]:
        """The prompts with the ids that their episodes begin with; UserError where one cannot."""
        found = []
        for prompt, outcome in zip(prompts, self._reset(prompts, seeds)):
            if outcome.error is not None:
                raise UserError(f"environment: {outcome.error}")
            row = _Row.begun(prompt, outcome, self.continuation)
            if not row.ids:
                raise UserError(
                    "environment: reset gave an empty observation, expected the text or the "
                    "messages that an episode begins with; return one, or give prompts as data"
                )
            found.append(Prompt(prompt.prompt, row.ids, prompt.columns))
        return found

    def converse(
        self, sampler: Sampler, tokenizer: Any, prompts: list[Prompt], draw: Draw
    ) -> Completions:
        """The policy's turns in `group_size` episodes of each prompt. An episode that begins with
        an empty observation begins with the prompt itself."""
        repeated = [p for p in prompts for _ in range(draw.group_size)]
        seeds = [seed for seed in draw.seeds() for _ in range(draw.group_size)]
        opened = zip(repeated, self._reset(repeated, seeds))
        rows = [self._opened(*both, sampler.policy) for both in opened]
        talking = _Talking(self, sampler, tokenizer, rows)
        for turn in range(self.max_turns):
            going = [b for b, row in enumerate(rows) if not row.end]
            if going:
                talking.take_turn(going, turn, draw.uniforms(turn))
        return talking.completions()

    def _opened(self, prompt: Prompt, outcome: Outcome, policy: CausalLMPolicy) -> _Row:
        """The row that a reset begins; it is lost at once where there is nothing to begin with."""
        nothing = replace(prompt, ids=prompt.ids or [policy.pad_token_id])
        if outcome.error is not None:
            return _Row(nothing, outcome, end="error")
        most = self.most_tokens(policy)
        try:
            row = _Row.begun(prompt, outcome, self.continuation, most)
        except UserError as error:
            return _Row(nothing, replace(outcome, error=str(error)), end="error")
        if 0 < len(row.ids) < most:
            return row
        many = len(row.ids) if len(row.ids) <= 2 * most else f"over {2 * most}"
        nowhere = (
            f"its first observation has {many} tokens, expected 1 to {most - 1}, which "
            f"leaves room for a turn in {most} (environment.max_tokens, or the model's context)"
        )
        return _Row(nothing, replace(outcome, error=nowhere), end="error")

    def _reset(self, prompts: Sequence[Prompt], seeds: list[int]) -> list[Outcome]:
        outcomes = self.pool.reset([p.columns for p in prompts], seeds)
        return [
            replace(x, observation=p.prompt) if x.error is None and not x.observation else x
            for p, x in zip(prompts, outcomes)
        ]


def _ids(
    make: Callable[[Outcome], list[int]], outcome: Outcome, most: int | None = None
) -> list[int]:
    """The ids that `make` gives for an outcome. Where its first part alone has twice `most` tokens,
    those of this part: no row has room for them, and to tokenise all would take long."""
    part = None if most is None else beginning(outcome.observation, PART * most)
    if part is not None and most is not None:
        with suppress(UserError):
            ids = make(replace(outcome, observation=part))
            if len(ids) > 2 * most:
                return ids
    return make(outcome)


@dataclass
class _Row:
    """One episode. outcome: what its next turn answers. conversation: all of it so far, text or
    messages. whole: whether its last turn ended by itself."""

    prompt: Prompt
    outcome: Outcome
    conversation: str | Messages = ""
    response: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    end: str = ""
    whole: bool = False

    @classmethod
    def begun(
        cls, prompt: Prompt, outcome: Outcome, continuation: Continuation, most: int | None = None
    ) -> _Row:
        """The row that a reset begins. most: see `_ids`."""
        messages, ids = continuation.messages(outcome), _ids(continuation.first, outcome, most)
        opening = str(outcome.observation) if messages is None else messages
        return cls(Prompt(opening, ids, prompt.columns), outcome, opening)

    @property
    def ids(self) -> list[int]:
        """The ids of its prompt."""
        return self.prompt.ids

    @property
    def finished(self) -> bool:
        """Whether nothing cut it off."""
        return self.end == "terminated" and self.whole

    def lose(self, error: str) -> None:
        """Give the row up."""
        self.end, self.outcome = "error", replace(self.outcome, error=error)

    def add(self, answer: list[int], text: str, outcome: Outcome) -> None:
        """A turn of the policy, and what its environment gave for it."""
        turn = Turn(
            start=len(self.response),
            end=len(self.response) + len(answer),
            text=text,
            reward=None if outcome.error else outcome.reward,
            state=state_number(self.outcome.info, self.outcome.observation),
            before=self.outcome.observation if self.turns else None,
            calls=outcome.info.get("tool_calls") or [],
            cut=not self.whole,
        )
        self.turns.append(turn)
        self.response = self.response + answer
        if isinstance(self.conversation, str):
            self.conversation += text
        else:
            self.conversation = [*self.conversation, {"role": "assistant", "content": text}]

    def go_on(self, response: list[int], observed: Messages | None, outcome: Outcome) -> None:
        """Begins the next turn behind the observation of `outcome`."""
        if isinstance(self.conversation, str):
            self.conversation += str(outcome.observation)
        else:
            self.conversation = [*self.conversation, *(observed or [])]
        self.response, self.outcome = response, outcome

    def talk(self) -> Talk:
        """How it went on, once it has ended."""
        said = None
        if isinstance(self.conversation, list) and len(self.turns) > 1:
            said = self.conversation[len(self.prompt.prompt) :]
        return Talk(self.turns, said, self.end, self.outcome.error)


@dataclass
class _Talking:
    """The rows of a rollout while they go on. recorded: of each turn the rows that took it and what
    was sampled."""

    environments: Environments
    sampler: Sampler
    tokenizer: Any
    rows: list[_Row]
    recorded: list[tuple[list[int], Samples]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._most = self.environments.most_tokens(self.sampler.policy)
        longest = self._most
        if self.environments.max_turns == 1:
            first = max(len(row.ids) for row in self.rows)
            longest = min(longest, first + self.sampler.max_new_tokens)
        self._turns = Turns(self.sampler, longest)

    def take_turn(self, going: list[int], turn: int, uniforms_BT: Tensor | None) -> None:
        """One turn of the rows `going`, and what their environments answer."""
        rows = [self.rows[b] for b in going]
        texts = [row.ids + row.response for row in rows]
        limits_R = torch.tensor([self._room(row, row.response) for row in rows])
        uniforms_RT = None if uniforms_BT is None else uniforms_BT[going]
        last = turn + 1 == self.environments.max_turns
        samples = self._turns.sample(going, texts, limits_R, uniforms_RT, last=last)
        self.recorded.append((going, samples))
        lengths = samples.inputs["response_lengths"].tolist()
        answers = [x[:n] for x, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
        ends = self.sampler.policy.eos_token_ids
        written = completion_texts(self.tokenizer, texts, answers, ends)
        outcomes = self.environments.pool.step(dict(zip(going, written)))
        for row, whole in zip(rows, samples.finished_B.tolist()):
            row.whole = whole
        for b, answer, text in zip(going, answers, written):
            self.rows[b].add(answer, text, outcomes[b])
            self._follow(self.rows[b], answer, outcomes[b], last)

    def _follow(self, row: _Row, answer: list[int], outcome: Outcome, last: bool) -> None:
        """Ends the row, or appends what its next turn goes on from."""
        if outcome.error is not None:
            row.lose(outcome.error)
            return
        row.end = "terminated" if outcome.terminated else "truncated" if outcome.truncated else ""
        row.end = row.end or ("max_turns" if last else "")
        if row.end == "terminated" or (row.end and not self.environments.observes_end):
            return
        continuation, before, observed = self.environments.continuation, row.conversation, None
        try:
            behind = partial(continuation.after, before, answer)
            response = row.response + _ids(behind, outcome, self._most)
            if isinstance(before, list):
                observed = continuation.messages(outcome, before)
        except UserError as error:
            row.lose(str(error))
            return
        if not row.end and self._room(row, response) < 1:
            row.end = "max_tokens"
        if not row.end:
            row.go_on(response, observed, outcome)
        elif len(row.ids) + len(response) <= self._most:
            row.response = response if self.environments.observes_end else row.response

    def _room(self, row: _Row, response: list[int]) -> int:
        """How many tokens a turn behind such a response may have."""
        return min(self.sampler.max_new_tokens, self._most - len(row.ids) - len(response))

    def completions(self) -> Completions:
        """The rows once all have ended."""
        rows, policy = self.rows, self.sampler.policy
        prompts, ids = [row.ids for row in rows], [row.response for row in rows]
        places = [[(turn.start, turn.end) for turn in row.turns] for row in rows]
        finished = [row.finished for row in rows]
        samples = samples_of_turns(policy, prompts, ids, places, self.recorded, finished)
        texts = completion_texts(self.tokenizer, prompts, ids, policy.eos_token_ids)
        talks = [row.talk() for row in rows]
        return Completions([row.prompt for row in rows], samples, texts, ids, finished, talks)
