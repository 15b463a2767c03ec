"""Turns text and chat messages into token ids, by rules that training and scoring share.

- A prompt starts with whatever the tokenizer puts before a text (BOS for Llama, nothing for
  GPT-2) and never ends with what it puts behind one (EOS), because the response follows.
- A response's ids are those that follow the prompt's ids when both are read as one text.
- A text to be scored is prompt + completion + EOS, in training reward models and in using them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lmpg.language.data.chat import Messages, conversation, render_chat


def bos_ids(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before a text: [BOS] or nothing."""
    bare = encode(tokenizer, "a")
    full = list(tokenizer("a", verbose=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` alone, without BOS or EOS."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def prompt_ids(tokenizer: Any, prompt: str | Messages) -> list[int]:
    """Ids of a prompt, ready for the response to follow."""
    if isinstance(prompt, str):
        return _started(bos_ids(tokenizer), encode(tokenizer, prompt))
    return encode(tokenizer, render_chat(tokenizer, prompt, open_turn=True))


def many_prompt_ids(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """`prompt_ids` of many texts at once, in one call of the tokenizer."""
    if not prompts:
        return []
    start = bos_ids(tokenizer)
    encoded = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
    return [_started(start, list(ids)) for ids in encoded]


def continuation_ids(tokenizer: Any, before: str, text: str) -> list[int]:
    """Ids of `text` as it continues `before`, whose own ids stay as they are.

    If a token would hold the end of `before` and the start of `text`, `text` is encoded behind a
    line break instead, since some tokenizers add a space to the beginning of every text.
    """
    for anchor in (before, "\n"):
        head, whole = encode(tokenizer, anchor), encode(tokenizer, anchor + text)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return encode(tokenizer, text)


def completion_text(tokenizer: Any, prompt: list[int], response: list[int]) -> str:
    """Text of a response as it continues its prompt, without special tokens.

    Decoded on its own it could lose its leading space (SentencePiece's decoders strip one).
    """
    return completion_texts(tokenizer, [prompt], [response])[0]


def completion_texts(
    tokenizer: Any, prompts: list[list[int]], responses: list[list[int]]
) -> list[str]:
    """`completion_text` of one response to each prompt; equal prompts are decoded once."""
    text = partial(tokenizer.decode, skip_special_tokens=True)
    heads: dict[tuple[int, ...], str] = {}
    found = []
    for prompt, response in zip(prompts, responses):
        key = tuple(prompt)
        if key not in heads:
            heads[key] = text(prompt)
        head, whole = heads[key], text(prompt + response)
        found.append(whole[len(head) :] if whole.startswith(head) else text(response))
    return found


def scored_ids(tokenizer: Any, prompt: str | Messages, completion: str | Messages) -> list[int]:
    """Ids that a reward model reads for prompt + completion.

    Text ends with EOS if the tokenizer has one, whether or not the policy got that far; chat
    ends as its template says.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        ids = list(tokenizer(prompt + completion, verbose=False)["input_ids"])
        eos = tokenizer.eos_token_id
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
        return ids
    chat = render_chat(tokenizer, conversation(prompt, completion), open_turn=False)
    return encode(tokenizer, chat)


def cut_left(ids: list[int], max_tokens: int, start: list[int]) -> list[int]:
    """The last `max_tokens` ids, still with `start` (BOS) in front if they began with it."""
    if len(ids) <= max_tokens:
        return ids
    if start and ids[: len(start)] == start and max_tokens > len(start):
        return start + ids[len(ids) - (max_tokens - len(start)) :]
    return ids[len(ids) - max_tokens :]


def _started(start: list[int], ids: list[int]) -> list[int]:
    """`start` in front, unless the text already spelt it out."""
    return ids if start and ids[: len(start)] == start else start + ids
