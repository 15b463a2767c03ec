"""Turns text and chat messages into token ids, by rules that training and scoring share.

- A prompt starts with whatever the tokenizer puts before a text (BOS for Llama, nothing for
  GPT-2) and never ends with what it puts behind one (EOS), because the response follows.
- A response's ids are those that follow the prompt's ids when both are read as one text.
- A chat is rendered as a whole and read as one text, never turn by turn.
- A text to be scored is prompt + completion + EOS, in training reward models and in using them.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from lmpg.language.data.chat import ChatOptions, Messages, conversation, render_chat
from lmpg.language.data.chats.wanted import template_of
from lmpg.language.data.settings import DataSettings
from lmpg.settings.section import UserError

# The text of the second ids as they continue the first.
Decode = Callable[[list[int], list[int]], str]
UNFINISHED, MOST_BYTES = "\ufffd", 4  # what a part of a character is decoded as
_UTILS = "transformers.tokenization_utils_"  # where methods of a tokenizer that hide nothing stand
_PLAIN = {"__call__": f"{_UTILS}base", "_encode_plus": f"{_UTILS}tokenizers"}
CONTEXT = 8  # tokens decoded in front, enough for decoders that treat a text's first one otherwise


def bos_ids(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before a text: [BOS] or nothing."""
    added = getattr(tokenizer, "add_bos_token", None), tokenizer.bos_token_id
    return list(_bos_ids(tokenizer, *_reads(tokenizer), added))


@lru_cache(maxsize=4)
def _bos_ids(tokenizer: Any, *_: Any) -> tuple[int, ...]:
    bare = encode(tokenizer, "a")
    full = list(tokenizer("a", verbose=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` alone, without BOS or EOS."""
    return list(_encoded(tokenizer, text, *_reads(tokenizer)))


@lru_cache(maxsize=8)
def _encoded(tokenizer: Any, text: str, *_: Any) -> tuple[int, ...]:
    """A prompt is read again before each of its answers."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _reads(tokenizer: Any) -> tuple[bool, int]:
    """What ids depend on that may change as long as a tokenizer lives."""
    return reads_special_tokens_as_text(tokenizer), len(tokenizer)


def prompt_ids(
    tokenizer: Any, prompt: str | Messages, options: ChatOptions | None = None
) -> list[int]:
    """Ids of a prompt, ready for the response to follow."""
    if isinstance(prompt, str):
        return _started(bos_ids(tokenizer), encode(tokenizer, prompt))
    return chat_ids(tokenizer, prompt, options, open_turn=True)


def chat_ids(
    tokenizer: Any,
    messages: Messages,
    options: ChatOptions | None = None,
    *,
    open_turn: bool,
    **how: Any,
) -> list[int]:
    """Ids of a whole chat, read as one text; `open_turn` ends where the assistant is to write.

    how: arguments of `apply_chat_template`.
    """
    render = partial(render_chat, tokenizer, messages, options, open_turn=open_turn, **how)
    if not reads_special_tokens_as_text(tokenizer):
        return encode(tokenizer, render())
    tokenizer.split_special_tokens = False  # those that the template writes are tokens
    try:
        return list(render(tokenize=True, return_dict=False, sanitize_control_tokens=True))
    finally:
        tokenizer.split_special_tokens = True


def reading_tokenizer(tokenizer: Any, settings: DataSettings) -> Any:
    """The tokenizer, which from now on reads data as the settings say: special tokens in it, and
    chats by the template that they name."""
    read_special_tokens(tokenizer, settings.special_tokens)
    if settings.chat_template is not None:
        tokenizer.chat_template = template_of(settings.chat_template, tokenizer)
    return tokenizer


def read_special_tokens(tokenizer: Any, how: str) -> None:
    """From now on, text of data that spells a special token is read as `how` says: as "text", or as
    the tokenizer's own settings say."""
    if how != "text":
        return
    template = inspect.signature(tokenizer.apply_chat_template).parameters
    if not tokenizer.is_fast or "sanitize_control_tokens" not in template:
        raise UserError(
            "data.special_tokens = 'text' needs a fast tokenizer and transformers 5.23 or newer: "
            "save the tokenizer as tokenizer.json, update transformers, or leave it out."
        )
    tokenizer.split_special_tokens = True


def reads_special_tokens_as_text(tokenizer: Any) -> bool:
    """Whether text that spells a special token is read as text."""
    return bool(getattr(tokenizer, "split_special_tokens", False))


def ids_and_cuts(tokenizer: Any, text: str, cuts: list[str]) -> tuple[list[int], list[int]]:
    """Ids of `text`, and how many of them lie within each of `cuts`, which `text` begins with.

    A token that holds the end of a cut and what follows lies outside.
    """
    if not getattr(tokenizer, "is_fast", False):
        ids = encode(tokenizer, text)
        return ids, [shared_length(ids, encode(tokenizer, cut)) for cut in cuts]
    read = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    ends = [end for _, end in read["offset_mapping"]]
    return list(read["input_ids"]), [bisect_right(ends, len(cut)) for cut in cuts]


def shared_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Number of ids, or characters, that both begin with."""
    pairs = enumerate(zip(a, b))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def many_prompt_ids(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """`prompt_ids` of many texts at once, in one call of the tokenizer."""
    if not prompts:
        return []
    start = bos_ids(tokenizer)
    return [_started(start, list(ids)) for ids in _many_ids(tokenizer, prompts)]


def _many_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of texts, without special tokens. transformers has the tokenizer note each token's place
    in its text, which takes a third of the time and is not read here."""
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
    read = partial(tokenizer, add_special_tokens=False, verbose=False, **only_ids)
    quick = getattr(getattr(tokenizer, "backend_tokenizer", None), "encode_batch_fast", None)
    methods = ((getattr(type(tokenizer), name, None), module) for name, module in _PLAIN.items())
    if quick is None or any(getattr(x, "__module__", None) != module for x, module in methods):
        return read(texts)["input_ids"]
    read(texts[:1])  # so that the tokenizer forgets what its file says of cutting and padding
    return [encoding.ids for encoding in quick(texts, add_special_tokens=False)]


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


def completion_text(
    tokenizer: Any,
    prompt: list[int],
    response: list[int],
    eos_token_ids: Sequence[int] | None = None,
) -> str:
    """Text of a response as it continues its prompt: all tokens but the EOS that ends it.

    Decoded on its own it could lose its leading space (SentencePiece's decoders strip one).
    eos_token_ids: what may end it; None for the tokenizer's EOS alone.
    """
    return completion_texts(tokenizer, [prompt], [response], eos_token_ids)[0]


def completion_texts(
    tokenizer: Any,
    prompts: list[list[int]],
    responses: list[list[int]],
    eos_token_ids: Sequence[int] | None = None,
) -> list[str]:
    """`completion_text` of one response to each prompt; equal prompts are decoded once."""
    exactly = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    text = partial(tokenizer.decode, **exactly)
    ends = [tokenizer.eos_token_id] if eos_token_ids is None else eos_token_ids
    special = _special_ids(tokenizer, len(tokenizer))
    heads: dict[tuple[int, ...], tuple[list[int], str]] = {}
    found = []
    for prompt, response in zip(prompts, responses):
        key = tuple(prompt)
        if key not in heads:
            bare = [i for i in prompt if i not in special]
            heads[key] = bare, text(bare)
        bare, head = heads[key]
        written = response[:-1] if response[-1:] and response[-1] in ends else response
        whole = text(bare + written)
        found.append(whole[len(head) :] if whole.startswith(head) else text(written))
    return found


def token_texts(tokenizer: Any, prompt: list[int], ids: list[int]) -> list[str]:
    """What each token of a response writes, special tokens too; a character that spans several
    tokens stands with the last of them."""
    text = partial(completion_text, tokenizer, eos_token_ids=())
    whole = text(prompt, ids)
    places, end = [], 0
    for width in token_widths(whole, ids, text):
        places.append(whole[end : end + width])
        end += width
    return places


def token_widths(text: str, ids: list[int], decode: Decode) -> list[int]:
    """How many characters of `text` each token writes; a character that spans several tokens counts
    for the last of them."""
    if not ids:  # of a row that its environment lost before the first turn
        return []
    widths = [0] * len(ids)
    first, _ = _whole(ids, 0, decode)
    end = first
    while end + 1 < len(ids):
        end, written = _whole(ids, end + 1, decode)
        widths[end] = len(written)
    # without anything in front it may be decoded otherwise than it stands in the text
    widths[first] = len(text) - sum(widths)
    return widths


def _whole(ids: list[int], start: int, decode: Decode) -> tuple[int, str]:
    """The first token after which those from `start` on are whole characters, and their text."""
    before = ids[max(0, start - CONTEXT) : start]
    for end in range(start, min(start + MOST_BYTES, len(ids))):
        written = decode(before, ids[start : end + 1])
        if not written.endswith(UNFINISHED):
            return end, written
    return start, decode(before, ids[start : start + 1])


@lru_cache(maxsize=4)
def _special_ids(tokenizer: Any, size: int) -> frozenset[int]:
    """Ids of special tokens; `size` is the tokenizer's, which grows with each that is added."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added if token.special}


def scored_ids(
    tokenizer: Any,
    prompt: str | Messages,
    completion: str | Messages,
    options: ChatOptions | None = None,
) -> list[int]:
    """Ids that a reward model reads for prompt + completion.

    Text ends with EOS if the tokenizer has one, whether or not the policy got that far; chat
    ends as its template says.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return _text_ids(tokenizer, prompt + completion)
    return chat_ids(tokenizer, conversation(prompt, completion), options, open_turn=False)


def _text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` as the tokenizer frames it, and EOS; what the text spells out is not put there
    a second time, as a chat rendered to text spells its BOS."""
    ids, eos = list(tokenizer(text, verbose=False)["input_ids"]), tokenizer.eos_token_id
    if ids[:1] == ids[1:2] or ids[-1:] == ids[-2:-1]:
        bare, start = encode(tokenizer, text), bos_ids(tokenizer)
        if start and bare[: len(start)] == start:
            ids = ids[len(start) :]
        if bare[-1:] == [eos] == ids[-2:-1]:
            ids.pop()
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


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
