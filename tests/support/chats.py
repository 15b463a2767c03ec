"""Chats, their templates, and tokenizers that have one."""

from __future__ import annotations

from tests.support.tiny_tokenizers import character_tokenizer

WORDS = (  # marks of turns in plain text, as Zephyr and its kin have them
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}{% endfor %}"
)


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


def part(text: str) -> dict:
    return {"type": "text", "text": text}


CHAT = [user("Hi"), assistant("Yo, friend"), user("And?"), assistant("So long")]


def chat_tokenizer(template: str, *, space_first: bool = True):
    tokenizer = character_tokenizer(space_first=space_first)
    tokenizer.chat_template = template
    return tokenizer


def spans(tokenizer, text) -> list[str]:
    """What is learned, as one text per unbroken run."""
    found: list[list[int]] = []
    for before, i, wanted in zip([False, *text.loss_mask], text.ids, text.loss_mask):
        if wanted and not before:
            found.append([])
        if wanted:
            found[-1].append(i)
    return [tokenizer.decode(ids).strip() for ids in found]
