"""What the settings make of prompts and chats: roles, the template and its variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmpg.language.data.chat import RESERVED, Messages
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.row_store import Row, Rows, changed
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError


def as_chat(value: str | Messages, settings: DataSettings) -> str | Messages:
    """A prompt, or a whole chat, as the settings want it: text as a user's message, and a system
    message in front."""
    if isinstance(value, str) and not settings.chat and settings.system_prompt is None:
        for key in ("chat_template", "chat_template_kwargs"):
            if getattr(settings, key):
                say_once(
                    f"data: data.{key} is for chats, not for texts; --data.chat makes chats of them"
                )
        return value
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if settings.system_prompt is None or any(x["role"] == "system" for x in messages[:1]):
        return messages
    return [{"role": "system", "content": settings.system_prompt}, *messages]


def refuse_chat(settings: DataSettings, where: str) -> None:
    """UserError where the settings make a chat of a prompt, but a text has no prompt of its own."""
    for key in ("chat", "system_prompt"):
        if value := getattr(settings, key):
            raise UserError(
                f"data.{key} = {value!r}: {where} holds a whole text, expected chat messages, or a "
                "prompt in a column of its own, which becomes the user's message."
            )


def with_template_kwargs(rows: Rows, settings: DataSettings) -> Rows:
    """The rows, whose column `chat_template_kwargs` has the settings' variables below its own."""
    given = settings.chat_template_kwargs
    if given.keys() & RESERVED:
        raise UserError(
            f"data.chat_template_kwargs = {given}, expected variables of the chat template, such "
            f"as {{enable_thinking: false}}, but none of {', '.join(sorted(RESERVED))}."
        )
    if not given:
        return rows

    def change(row: Row, _: int) -> Row:
        return {**row, "chat_template_kwargs": _over(given, row)}

    return changed(rows, change, "chat_template_kwargs")


def _over(given: dict[str, Any], row: dict[str, Any]) -> Any:
    """A row's own variables over those given; what is no object stays, to be refused later."""
    own = row.get("chat_template_kwargs") or {}
    try:
        own = json.loads(own) if isinstance(own, str) else own
    except (ValueError, RecursionError):
        return own
    return given | own if isinstance(own, dict) else own


def template_of(path: str, tokenizer: Any) -> str:
    """The chat template in a file; UserError where there is none that can be read."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UserError(
            f"data.chat_template = {path}: {reason}, expected a file with a Jinja template."
        ) from None
    try:
        probe = [{"role": "user", "content": "a"}]
        tokenizer.apply_chat_template(probe, chat_template=text, tokenize=False)
    except Exception as error:  # others are about the probe, such as a role that must come first
        if type(error).__name__ == "TemplateSyntaxError":
            raise UserError(
                f"data.chat_template = {path}, line {getattr(error, 'lineno', '?')}: {error}, "
                "expected a Jinja template; mend it."
            ) from None
    return text
