"""What stands between the policy's turns, as ids: the observation, as the chat template writes it.

The ids of a turn stay as they were sampled, its EOS included. What follows is found by rendering
the conversation with a probe in the turn's place: all that the template writes behind the probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lmpg.language.data.chat import ChatOptions, Messages, conversation, render_chat
from lmpg.language.data.chats.wanted import as_chat
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.tokenizing import (
    chat_ids,
    completion_text,
    continuation_ids,
    encode,
    prompt_ids,
    reads_special_tokens_as_text,
)
from lmpg.language.environments.interface import Outcome
from lmpg.language.environments.tool_calls import calls_in
from lmpg.language.environments.tools import as_object, call_id
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

Conversation = str | Messages
_PROBE = "probe of a turn"
_ANCHOR = 64  # characters of a turn that decide how what follows it is read
_THOUGHT = f"<think>\n{_PROBE}\n</think>\n\n{_PROBE}"


class Continuation:
    """Ids of prompts and of what follows a turn; conversations are text or chat messages.

    eos_token_ids: what may end a turn. rewritten: as in the settings section `environment`.
    calls_as_objects: the format of calls in the text of earlier turns that the chat template wants
    under `tool_calls`; None where it takes them as text.
    """

    def __init__(
        self,
        tokenizer: Any,
        data: DataSettings,
        eos_token_ids: Sequence[int],
        rewritten: str = "refuse",
        calls_as_objects: str | None = None,
    ):
        self._tokenizer, self._data = tokenizer, data
        self._ends = frozenset(eos_token_ids)
        self._rewritten = rewritten
        self._calls_as_objects = calls_as_objects
        self._checked: set[tuple[str, ...]] = set()
        self._rewriting: set[str] = set()

    def messages(self, outcome: Outcome, so_far: Messages | None = None) -> Messages | None:
        """The messages that an outcome adds to the conversation `so_far`; None for text.

        Without a conversation they begin one, as the settings want prompts.
        """
        if so_far is None:
            opened = as_chat(outcome.observation, self._data)
            return None if isinstance(opened, str) else opened
        if isinstance(outcome.observation, str):
            return [{"role": "user", "content": outcome.observation}]
        return outcome.observation

    def first(self, outcome: Outcome) -> list[int]:
        """Ids of the prompt that a reset gives: those of the same text or messages as data."""
        opened, options = as_chat(outcome.observation, self._data), self._options(outcome)
        if not isinstance(opened, str):
            reply = {"role": "user", "content": _PROBE}
            if outcome.tools:
                reply |= {"role": "tool", "name": "probe", "tool_call_id": call_id(1)}
            with suppress(UserError):  # a template may want what only a real reply has
                self._rewriting |= self._found_rewriting(opened, [reply], options)
            self._tell_of_rewriting()
        return prompt_ids(self._tokenizer, opened, options)

    def after(self, so_far: Conversation, answer_ids: Sequence[int], outcome: Outcome) -> list[int]:
        """Ids to append to a turn of the policy, so that it can take the next one.

        so_far: the text, or the messages, of which the turn is the last. answer_ids: the turn's, as
        sampled. outcome: what the environment replied.
        """
        ended = bool(answer_ids) and answer_ids[-1] in self._ends
        if isinstance(so_far, str):
            if isinstance(outcome.observation, str):
                return self._read_behind(answer_ids, outcome.observation)
            raise UserError(
                "environment: reset returned text and step chat messages, expected one kind; "
                "return chat messages from both, or set --data.chat"
            )
        observed = self.messages(outcome, so_far) or []
        options, written = self._options(outcome), self._written(so_far[:-1])
        self._rewriting |= self._found_rewriting(written, observed, options)
        self._tell_of_rewriting()
        ids = self._behind_probe(written, answer_ids, observed, options)
        return self._without_end(ids) if ended else ids

    def _options(self, outcome: Outcome) -> ChatOptions:
        """What the chat template gets beside the messages."""
        tools = {"tools": outcome.tools} if outcome.tools else {}
        return {**tools, **self._data.chat_template_kwargs, **outcome.template_kwargs}

    def _written(self, messages: Messages) -> Messages:
        """The messages as the template gets them: calls in text, or as objects; a turn joined with
        what the prompt has begun of it."""
        joined: Messages = []
        for message in messages:
            if joined and message["role"] == joined[-1]["role"] == "assistant":
                joined = conversation(joined, message["content"])
            else:
                joined.append(message)
        if self._calls_as_objects is None:
            return joined
        return _with_objects(joined, self._calls_as_objects)

    def _behind_probe(
        self, before: Messages, answer_ids: Sequence[int], observed: Messages, options: ChatOptions
    ) -> list[int]:
        """Ids of all that the template writes behind the turn that follows `before`."""
        if reads_special_tokens_as_text(self._tokenizer):
            both = [
                chat_ids(
                    self._tokenizer,
                    [*conversation(before, f"{_PROBE} {mark}"), *observed],
                    options,
                    open_turn=True,
                )
                for mark in "AB"
            ]
            return _shared_end(*both)
        whole = [*conversation(before, _PROBE), *observed]
        text = render_chat(self._tokenizer, whole, options, open_turn=True)
        _, probe, behind = text.rpartition(_PROBE)
        if not probe:
            raise UserError(
                "environment: the chat template leaves out the assistant's earlier turns, expected "
                "one that writes all of them; give another with --data.chat-template"
            )
        return self._read_behind(answer_ids, behind)

    def _read_behind(self, answer_ids: Sequence[int], text: str) -> list[int]:
        """Ids of text behind a turn, whose own stay as they are."""
        if not text:
            return []
        alone = encode(self._tokenizer, text)
        if alone[0] in self._ends or alone[0] in self._tokenizer.all_special_ids:
            return alone
        if answer_ids and answer_ids[-1] in self._ends:
            return continuation_ids(self._tokenizer, "\n", text)
        said = completion_text(self._tokenizer, [], list(answer_ids), ())
        return continuation_ids(self._tokenizer, said[-_ANCHOR:], text)

    def _without_end(self, ids: list[int]) -> list[int]:
        """What follows a turn that ended itself: the template's own end of it is left out, with
        white space before it."""
        for i, token in enumerate(ids):
            if token in self._ends:
                return ids[i + 1 :]
            if self._tokenizer.decode([token]).strip():
                break
        return ids

    def _found_rewriting(
        self, before: Messages, observed: Messages, options: ChatOptions
    ) -> set[str]:
        """What a template writes anew, of the conversation up to a turn or of the turn itself, once
        something follows; looks once for each order of roles."""
        roles = tuple(str(x.get("role")) for x in [*before, {"role": "turn"}, *observed])
        if roles in self._checked:
            return set()
        self._checked.add(roles)
        head = render_chat(self._tokenizer, before, options, open_turn=True)
        thinks = "think" in str(self._tokenizer.get_chat_template(None, options.get("tools")))
        for turn in (_PROBE, _THOUGHT) if thinks else (_PROBE,):
            whole = [*conversation(before, turn), *observed]
            text = render_chat(self._tokenizer, whole, options, open_turn=True)
            if not text.startswith(head + turn):
                return {"what stands before" if turn == _PROBE else "the thinking of"}
        return set()

    def _tell_of_rewriting(self) -> None:
        """Refuses a template that writes something anew, or says so."""
        if not self._rewriting:
            return
        said = (
            f"environment: the chat template changes {min(self._rewriting)} an earlier turn once "
            "another message follows, so that the policy would read other text than it has sampled"
        )
        if self._rewritten == "refuse":
            raise UserError(
                f"{said}. Set --environment.rewritten keep to let it read what it has sampled, or "
                "give a template that leaves earlier turns alone with --data.chat-template"
            )
        say_once(f"{said}; here it goes on reading what it has sampled (environment.rewritten)")


def _with_objects(messages: Messages, call_format: str) -> Messages:
    """The messages with the calls that turns have in their text under `tool_calls`, numbered as
    `ToolEnvironment` numbers them."""
    number, found = 0, []
    for message in messages:
        is_turn = message["role"] == "assistant" and not message.get("tool_calls")
        calls = calls_in(message.get("content") or "", call_format) if is_turn else []
        ids = [call_id(number + 1 + i) for i in range(len(calls))]
        number += len(calls)
        if any("problem" not in call for call in calls):
            made = [as_object(call, name) for call, name in zip(calls, ids)]
            message = {**message, "content": "", "tool_calls": made}
        found.append(message)
    return found


def _shared_end(a: list[int], b: list[int]) -> list[int]:
    """Ids that both end with."""
    pairs = enumerate(zip(reversed(a), reversed(b)))
    count = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
    return a[len(a) - count :]
