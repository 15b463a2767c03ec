"""Lets a model answer prompts, over the sampler of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from lmpg.language.data.chat import Messages, as_text
from lmpg.language.data.chats.wanted import as_chat
from lmpg.language.data.prompts import Prompt, load_all_prompts, prompts_from_rows
from lmpg.language.data.tokenizing import bos_ids
from lmpg.language.rollouts.generation import Generator
from lmpg.language.trained.command_settings import GIVEN, GenerateSettings
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

KEY = ("generate",)
"""Of the random numbers."""
HEAD = 70
"""Characters of a prompt above its response."""


@dataclass(frozen=True)
class Response:
    """One response. prompt: as it was given; read: what the model read, special tokens included.
    text: without the EOS token; written: with all special tokens. ended: by an EOS token or a stop
    string, not at the limit of tokens."""

    prompt: str | Messages
    text: str
    length: int
    ended: bool
    read: str
    written: str

    def as_json(self) -> dict[str, Any]:
        """For a line of JSON."""
        names = ("prompt", "text", "length", "ended")
        return {name: getattr(self, name) for name in names}

    def shown(self, special: bool) -> str:
        """The text to read; with `special`, all that the model read and wrote."""
        return self.read + self.written if special else self.text

    def head(self, number: int, count: int) -> str:
        """A line that says which response it is: the end of its prompt, and its number."""
        prompt = " ".join(as_text(self.prompt).split())
        which = f" ({number} of {count})" if count > 1 else ""
        return f"--- {prompt if len(prompt) <= HEAD else '…' + prompt[1 - HEAD :]}{which}"


def prompts_of(
    settings: GenerateSettings, generator: Generator, given: Sequence[str | Messages]
) -> list[Prompt]:
    """The prompts of data.path, or those that were `given`, texts and chats."""
    room = generator.policy.context_length - settings.sampling.max_new_tokens
    if settings.data.path != GIVEN:
        return list(load_all_prompts(settings.data, generator.tokenizer, room))
    for number, prompt in enumerate(given, 1):
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise UserError(f"prompt {number} of {len(given)} is empty, expected a text or a chat")
    data, kwargs = settings.data, settings.data.chat_template_kwargs
    rows = [
        {"prompt": as_chat(prompt, data), **({"chat_template_kwargs": kwargs} if kwargs else {})}
        for prompt in given
    ]
    prompts = list(prompts_from_rows(rows, generator.tokenizer, room, overlong=data.overlong))
    _say_that_it_chats(prompts, generator.tokenizer)
    return prompts


def _say_that_it_chats(prompts: Sequence[Prompt], tokenizer: Any) -> None:
    """A model that was taught to chat may end at once where it is to go on with a text; texts that
    spell a chat's special tokens are chats already."""
    marks = {*tokenizer.added_tokens_decoder} - {*bos_ids(tokenizer)}
    plain = [x.ids for x in prompts if isinstance(x.prompt, str)]
    if plain and getattr(tokenizer, "chat_template", None) and not marks & {*chain(*plain)}:
        say_once(
            "the model has a chat template, and goes on with the prompts as plain texts here; "
            "--data.chat True asks it as `lmpg chat` does"
        )


def responses(
    settings: GenerateSettings, generator: Generator, prompts: Sequence[Prompt]
) -> Iterator[list[Response]]:
    """The responses to each prompt in turn; the same prompt at the same place gets the same ones,
    whatever the batch size."""
    samples = 1 if settings.greedy else settings.samples
    together = max(1, settings.batch_size // samples)
    uniforms_BT = None if settings.greedy else generator.uniforms(KEY, len(prompts), samples)
    for start in range(0, len(prompts), together):
        part = list(prompts[start : start + together])
        rows = slice(start * samples, (start + len(part)) * samples)
        uniforms = None if uniforms_BT is None else uniforms_BT[rows]
        found = answered(generator, part, samples, uniforms)
        for i in range(len(part)):
            yield found[i * samples : (i + 1) * samples]


def answered(
    generator: Generator, prompts: list[Prompt], samples: int, uniforms_BT: Any
) -> list[Response]:
    """`samples` responses to each prompt, prompt-major; greedy without uniforms."""
    made = generator.generate(prompts, samples, uniforms_BT)
    whole = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    decode = partial(generator.tokenizer.decode, **whole)
    rows = zip(made.prompts, made.texts, made.ids, made.finished)
    return [
        Response(prompt.prompt, text, len(ids), ended, decode(prompt.ids), decode(ids))
        for prompt, text, ids, ended in rows
    ]
