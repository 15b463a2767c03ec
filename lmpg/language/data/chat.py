"""Chat messages: what is one, and how a chat template writes them."""

from __future__ import annotations

from typing import Any

from lmpg.settings.section import UserError

Messages = list[dict[str, Any]]


def is_messages(value: Any) -> bool:
    """Whether `value` is chat messages: a list of dicts with `role` and `content`."""
    return isinstance(value, list) and all(
        isinstance(message, dict) and "role" in message and "content" in message
        for message in value
    )


def conversation(prompt: str | Messages, completion: str | Messages) -> Messages:
    """Prompt and completion as one list of messages."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not isinstance(completion, str):
        return before + list(completion)
    if before and before[-1]["role"] == "assistant":  # the completion goes on with that turn
        begun = before.pop()
        completion = begun["content"] + completion
    return [*before, {"role": "assistant", "content": completion}]


def render_chat(tokenizer: Any, messages: Messages, *, open_turn: bool) -> str:
    """Messages through the chat template; `open_turn` ends where the assistant is to write."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the data holds chat messages, but the tokenizer has no chat template. Use a chat "
            "model, set tokenizer.chat_template and save it beside the model, or give the "
            "prompts as plain text."
        )
    begun = bool(messages) and messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=open_turn and not begun,
            continue_final_message=open_turn and begun,
        )
    except Exception as error:  # templates raise jinja2's errors, and any other
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(
            f"the chat template refuses messages with the roles {roles}: {error}"
        ) from None
