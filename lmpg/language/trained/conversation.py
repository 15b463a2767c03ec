"""A chat with a model: what was said, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lmpg.language.data.chat import Messages
from lmpg.language.data.chats.wanted import as_chat
from lmpg.language.data.prompts import Prompt
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.tokenizing import prompt_ids
from lmpg.language.rollouts.generation import Generator
from lmpg.language.trained.command_settings import ChatSettings
from lmpg.language.trained.loaded import began_alone, loaded
from lmpg.language.trained.responses import Response, answered
from lmpg.runtime.seeding import generator as seeded
from lmpg.settings.section import UserError

KEY = "chat"
"""Of the random numbers."""


def begun(settings: ChatSettings, tell: Callable[[str], object]) -> Conversation:
    """A chat with the model of the settings, loaded; `tell` is given each response piece by piece,
    as it is sampled."""
    data = DataSettings(path=KEY, **settings.data.model_dump())
    return Conversation(settings, loaded(settings, data, began_alone(settings), tell=tell))


@dataclass
class Conversation:
    """What was said so far. system: the system message, None for none. turns: how many responses
    there were, those that are forgotten included, as each has random numbers of its own."""

    settings: ChatSettings
    generator: Generator
    system: str | None = None
    history: Messages = field(default_factory=list)
    turns: int = 0
    forgotten: int = 0
    """Messages left out at the front, as the model's context is full."""

    def __post_init__(self) -> None:
        self.system = self.settings.data.system_prompt
        if not getattr(self.generator.tokenizer, "chat_template", None):
            raise UserError(
                f"model.path = {self.settings.model.path}: its tokenizer has no chat template, "
                "expected one. Give --data.chat-template FILE, take another's with "
                "--model.tokenizer, or let the model go on with a text by `lmpg generate`"
            )

    def answer(self, text: str) -> Response:
        """What the model says to `text`; both become part of the history."""
        chat: Messages = [*self.history, {"role": "user", "content": text}]
        prompt, chat = self._fitting(chat)
        sampler = self.generator.sampler
        uniforms = None
        if not self.settings.greedy:
            random = seeded(self.settings.seed, KEY, self.turns)
            uniforms = torch.rand((1, sampler.max_new_tokens), generator=random)
        (response,) = answered(self.generator, [prompt], 1, uniforms)
        self.forgotten += len(self.history) + 1 - len(chat)
        self.history = [*chat, {"role": "assistant", "content": response.text}]
        self.turns += 1
        return response

    def forget(self) -> None:
        """Begin anew."""
        self.history, self.forgotten = [], 0

    def _fitting(self, chat: Messages) -> tuple[Prompt, Messages]:
        """The prompt, and of the chat the last messages that leave room for a response."""
        room = self.generator.policy.context_length - self.settings.sampling.max_new_tokens
        kwargs = self.settings.data.chat_template_kwargs
        data = DataSettings(path=KEY, system_prompt=self.system, chat_template_kwargs=kwargs)
        chats = [as_chat(chat[i:], data) for i in range(0, len(chat), 2)]
        for i, messages in enumerate(chats):
            ids = prompt_ids(self.generator.tokenizer, messages, kwargs)
            if len(ids) <= room:
                return Prompt(messages, ids), chat[2 * i :]
        raise UserError(
            f"the message has {len(ids)} tokens as the chat template writes it, but only {room} "
            "fit into the model's context beside the response: say it shorter, or begin with a "
            "smaller --sampling.max-new-tokens"
        )
