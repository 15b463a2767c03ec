"""Chat messages: what is one, and how a chat template writes them."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from lmpg.language.data.row_files import with_whole_characters
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

Messages = list[dict[str, Any]]
ChatOptions = dict[str, Any]
"""What a chat template gets beside the messages: `tools`, and variables of its own."""

EXAMPLE = '[{"role": "user", "content": "..."}]'
OPTIONS = ("tools", "chat_template_kwargs")
"""Columns of a row that its chat template gets."""
CALLS = ("tool_calls", "function_call")  # a message that calls a tool may have no text
SAID = ("content", "reasoning_content", "reasoning", "thinking")  # where messages have text
_CHAT_AS_TEXT = re.compile(
    r"""\s*\[\s*\{\s*['"]((role|content)['"]\s*:|from['"]\s*:\s*['"]\w+['"]\s*,\s*['"]value['"])"""
)
RESERVED = {
    *("messages", "conversation", "tools", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "sanitize_control_tokens", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}  # arguments of `apply_chat_template` that are no variables of the template
_PROBE = "probe of the chat template"


def text_or_messages(value: Any, where: str) -> Any:
    """`value` if it is text or None; chat messages with the content of each as one text.

    Anything else raises, and so does content that is not text, such as an image. where: file, row
    and column, for messages.
    """
    if isinstance(value, str) and _CHAT_AS_TEXT.match(value):
        value = _from_json(value, where, "chat messages")
    value = _whole(value)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
        raise UserError(
            f"{where} holds {_shown(value)}, expected text, or chat messages such as {EXAMPLE}."
        )
    return [_message(message, f"{where}, message {n}") for n, message in enumerate(value, 1)]


def _whole(value: Any) -> Any:
    """`value` without halves of characters, which no tokenizer reads."""
    whole = with_whole_characters(value)
    if whole != value:
        say_once("data: text holds half a character, read as \ufffd")
    return whole


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """The message, with its content as one text if it is given in parts."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        keys = ", ".join(map(repr, message)) or "no keys"
        raise UserError(
            f"{where} has {keys} and no role that is text, expected chat messages such as "
            f"{EXAMPLE}: rename the keys."
        )
    if isinstance(content, str) or (content is None and any(message.get(k) for k in CALLS)):
        return message
    if isinstance(content, list):
        return {**message, "content": "".join(_part(x, f"{where} ({role})") for x in content)}
    found = "no content" if content is None else f"content {_shown(content)}"
    raise UserError(
        f"{where} ({role}) has {found}, expected text: give the message a text, or leave it out."
    )


def _part(part: Any, where: str) -> str:
    """The text of one part of a message's content."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind == "text" and isinstance(text, str):
        return text
    what = f"a part of type {kind!r}" if isinstance(kind, str) else _shown(part)
    raise UserError(
        f"{where}: its content is a list that holds {what}, expected text, or parts such as "
        '{"type": "text", "text": "..."}; images and the like can\'t be learned from.'
    )


def chat_options(row: dict[str, Any], where: str) -> ChatOptions:
    """What the columns `tools` (a list of schemas) and `chat_template_kwargs` (a dict) of a row
    give its chat template; either may also be JSON text."""
    found: ChatOptions = {}
    if any(row.get(name) for name in ("images", "image")):
        say_once("data: images can't be learned from: of each row only the text is read")
    tools, place = row.get("tools"), f"{where}, column 'tools'"
    if tools:
        tools = _from_json(tools, place, "a list of tools")
        each = tools if isinstance(tools, list) else [None]
        found["tools"] = [_from_json(tool, place, "a tool") for tool in each]
        if not all(isinstance(tool, dict) for tool in found["tools"]):
            raise UserError(
                f"{place} holds {_shown(tools)}, expected a list of tools, each a JSON schema such "
                'as {"type": "function", "function": {"name": "..."}}; other columns need another '
                "name."
            )
    options, place = row.get("chat_template_kwargs"), f"{where}, column 'chat_template_kwargs'"
    if options:
        options = _from_json(options, place, "an object")
        if not isinstance(options, dict) or options.keys() & RESERVED:
            raise UserError(
                f"{place} holds {_shown(options)}, expected variables of the chat template, such "
                'as {"enable_thinking": false}.'
            )
        found |= options
    return _whole(found)


def conversation(prompt: str | Messages, completion: str | Messages) -> Messages:
    """Prompt and completion as one list of messages."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not isinstance(completion, str):
        return before + list(completion)
    if before and before[-1]["role"] == "assistant":  # the completion goes on with that turn
        begun = before.pop()
        return [*before, {**begun, "content": (begun.get("content") or "") + completion}]
    return [*before, {"role": "assistant", "content": completion}]


def as_text(prompt: str | Messages) -> str:
    """A prompt to read: text, or the messages of a chat with their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{x.get('role', '?')}: {x.get('content') or ''}" for x in prompt)


def is_begun(messages: Messages) -> bool:
    """Whether the last message is the assistant's, so that what follows goes on with it."""
    return bool(messages) and messages[-1]["role"] == "assistant"


def render_chat(
    tokenizer: Any,
    messages: Messages,
    options: ChatOptions | None = None,
    *,
    open_turn: bool,
    **how: Any,
) -> Any:
    """Messages through the chat template; `open_turn` ends where the assistant is to write.

    how: arguments of `apply_chat_template`, which else gives text.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the data or the environment give chat messages, but the tokenizer has no chat "
            "template. Use a chat model, take another's template with --model.tokenizer, write "
            "one into chat_template.jinja in the model's folder, or give plain text."
        )
    begun = open_turn and is_begun(messages)
    try:
        options = _read_options(tokenizer, messages, options or {})
        written = tokenizer.apply_chat_template(
            _read_messages(tokenizer, messages),
            **{
                "add_generation_prompt": open_turn and not begun,
                "continue_final_message": begun,
                "tokenize": False,
                **how,
            },
            **options,
        )
        _say_what_is_left_out(messages, written)
        return _whole(written)
    except UserError:
        raise
    except Exception as error:  # templates raise jinja2's errors, and any other
        raise UserError(_refused(error, messages)) from None


def _refused(error: Exception, messages: Messages) -> str:
    """Why a template wrote nothing, and what helps."""
    other = "another template by --data.chat-template FILE"
    if type(error).__name__ == "TemplateSyntaxError":
        line = getattr(error, "lineno", "?")
        return f"the chat template is no Jinja (line {line}: {error}): mend it, or take {other}"
    roles = [str(message.get("role")) for message in messages]
    fix = "give messages as it takes them"
    if "system" in roles:
        fix += ", without the system message (data.system_prompt) if that is what it refuses"
    return (
        f"the chat template refuses messages with the roles {', '.join(roles)}: {error}; {fix}, or "
        f"take {other}"
    )


def _read_options(tokenizer: Any, messages: Messages, options: ChatOptions) -> ChatOptions:
    """The options that the template reads; says once which it doesn't, and what else it reads."""
    template = tokenizer.get_chat_template(None, options.get("tools"))
    for message in messages:
        calls = [name for name in CALLS if message.get(name)]
        if not calls or any(name in template for name in calls):
            continue
        if not message.get("content"):
            raise UserError(
                f"a message of the {message['role']} has {calls[0]} and no content, but the chat "
                f"template doesn't write {calls[0]}. Use a chat model that calls tools, or give "
                "the message a text."
            )
        say_once(f"data: the chat template doesn't write {calls[0]}, so what they call is left out")
    if "strftime_now" in template and "date_string" not in options:
        say_once(
            "data: the chat template writes today's date, so on another day the same data are "
            "other text; a column chat_template_kwargs can give a date (often as date_string)"
        )
    unread = [name for name in options if not re.search(rf"\b{re.escape(name)}\b", template)]
    for name in unread:
        column = "column 'tools'" if name == "tools" else f"{name} of chat_template_kwargs"
        say_once(f"data: the chat template writes no {name}, so the {column} is not used")
    return {name: value for name, value in options.items() if name not in unread}


def _say_what_is_left_out(messages: Messages, written: Any) -> None:
    """Logs once for each role if the template leaves out part of what it says; spaces don't count.

    written: the chat as text, or as ids, in which nothing is looked for.
    """
    for message in messages if isinstance(written, str) else []:
        for said in filter(None, map(message.get, SAID)):
            if not _holds(written, str(said)):
                such = " (such as its thinking)" if message["role"] == "assistant" else ""
                say_once(
                    f"data: the chat template leaves out part of what the {message['role']} says"
                    f"{such}, so that part is neither read nor learned"
                )


def _holds(written: str, said: str) -> bool:
    """Whether a template wrote this text, as it is or as JSON."""
    if said in written:
        return True
    squeezed = "".join(written.split())
    texts = (said, json.dumps(said, ensure_ascii=False)[1:-1])
    return any("".join(text.split()) in squeezed for text in texts)


def _read_messages(tokenizer: Any, messages: Messages) -> Messages:
    """The messages; each content as a list of one part, where the template reads only parts."""
    if not _reads_parts_alone(tokenizer, str(tokenizer.chat_template)):
        return messages
    return [
        {**x, "content": [{"type": "text", "text": x["content"]}]} if x.get("content") else x
        for x in messages
    ]


@lru_cache(maxsize=8)
def _reads_parts_alone(tokenizer: Any, template: str) -> bool:
    """Whether the template leaves out content that is text, but writes it as a list of parts."""

    def writes(content: Any) -> bool:
        try:
            messages = [{"role": "user", "content": content}]
            return _PROBE in tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # it wants other roles, or fails on the kind of content
            return False

    return not writes(_PROBE) and writes([{"type": "text", "text": _PROBE}])


def _from_json(value: Any, where: str, what: str) -> Any:
    """`value`, read from JSON if it is text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UserError(
            f"{where} holds the text {value[:60]!r}, expected {what}: it doesn't parse as JSON. "
            "Save such data as JSON lines or parquet."
        ) from None


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
