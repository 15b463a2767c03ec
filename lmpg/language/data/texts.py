"""Texts as token ids with a loss mask, which marks the tokens that are to be predicted.

Rows may have `prompt` and `completion` (the mask covers the completion), `messages` (the
assistant's turns), `text` (all of it), or be preferences (the chosen answer). Text and
completions end with EOS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from lmpg.language.data.chat import (
    ChatOptions,
    Messages,
    chat_options,
    conversation,
    is_begun,
    render_chat,
    text_or_messages,
)
from lmpg.language.data.chats.wanted import as_chat, refuse_chat
from lmpg.language.data.examples import (
    Parts,
    RowFilter,
    Split,
    columns_of,
    load_split,
    require_column,
)
from lmpg.language.data.preference_rows import is_empty, is_preference, preference
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.examples_store import Lists, Stored
from lmpg.language.data.storage.row_store import Row, Rows, as_rows
from lmpg.language.data.tokenizing import (
    bos_ids,
    chat_ids,
    continuation_ids,
    ids_and_cuts,
    prompt_ids,
    reads_special_tokens_as_text,
    shared_length,
)
from lmpg.runtime.progress import with_progress
from lmpg.settings.section import UserError, beginning_with

# how a chat ends: behind its last message, where the assistant's turn is opened, within that turn
CLOSED = {"open_turn": False}
OPENED = {"open_turn": True, "add_generation_prompt": True, "continue_final_message": False}
BEGUN = {"open_turn": True}


@dataclass(frozen=True)
class Text:
    """Token ids, and for each whether it is to be predicted; the first never is."""

    plural: ClassVar[str] = "texts"
    ids: list[int]
    loss_mask: list[bool]

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first that is to be predicted."""
        return self.loss_mask.index(True)


def stored_texts(store: Lists) -> Stored[Text]:
    """Texts whose ids and loss masks are in a store of the kinds "ib": five bytes a token."""
    return Stored(partial(text_of, store), np.arange(len(store)), store)


def text_of(store: Lists, i: int, first: int = 0) -> Text:
    """A text of a store, whose lists `first` and the next are its ids and its loss mask."""
    return Text(store.read(i, first), list(map(bool, store.read(i, first + 1))))


def learnable(texts: Sequence[Text]) -> tuple[Sequence[Text], list[int]]:
    """The texts that have anything to be predicted, and how many tokens each of these has."""
    if isinstance(texts, Stored) and texts.store is not None:
        found = texts.take(np.flatnonzero(texts.store.sums(1)[texts.order]))
        return found, texts.store.lengths()[found.order].tolist()
    listed = [text for text in texts if any(text.loss_mask)]
    return listed, [len(text.ids) for text in listed]


def load_texts(
    settings: DataSettings, tokenizer: Any, max_tokens: int, parts: Parts = ()
) -> Split[Text]:
    """Texts of `data.path`, held-out ones from `data.eval_path` or else held back. parts: as of
    `load_split`."""
    row_filter = RowFilter(max_tokens, settings.overlong, bos_ids(tokenizer))
    return load_split(
        settings,
        row_filter,
        lambda rows, source: _read(rows, tokenizer, row_filter, settings, source),
        parts,
    )


def texts_from_rows(rows: Iterable[Row], tokenizer: Any, max_tokens: int) -> Stored[Text]:
    """Texts of rows in memory, which have the default columns."""
    row_filter = RowFilter(max_tokens, "error", bos_ids(tokenizer))
    return _read(as_rows(rows), tokenizer, row_filter, DataSettings(), "rows")


def _read(
    rows: Rows, tokenizer: Any, row_filter: RowFilter, settings: DataSettings, source: str
) -> Stored[Text]:
    store = Lists("ib")
    for where, first, answer, options in _parts(rows, settings, source):
        if first is None:
            row_filter.skipped["empty"] += 1
            continue
        whole = whole_text(tokenizer, first, answer, where, options)
        if not any(whole.loss_mask):  # a single token, which nothing comes before
            row_filter.skipped["empty"] += 1
            continue
        text = fitted_text(whole, row_filter, where, answer)
        if text is not None:
            store.append(text.ids, text.loss_mask)
    return row_filter.not_empty(stored_texts(store), len(rows), source)


def _parts(
    rows: Rows, settings: DataSettings, source: str
) -> Iterator[tuple[str, Any, Any, ChatOptions]]:
    """Yields for each row where it is, its text or prompt (None if the row is of no use), its
    completion (None if the row is a text without a prompt), and the chat template's options."""
    of_preferences = _only_preferences(rows, settings)
    column, completion = ("", None) if of_preferences else _columns(rows, settings, source)
    said = with_progress(rows, f"rows of {source} tokenised", len(rows))
    for number, row in enumerate(said, start=1):
        where = f"{source}, row {number}"
        if of_preferences:
            found = preference(row, settings, where)
            if found and not is_empty(found.chosen):
                yield where, found.prompt, found.chosen, found.options
            else:
                yield where, None, None, {}
            continue
        first = text_or_messages(row.get(column), f"{where}, column {column!r}")
        answer = completion and text_or_messages(
            row.get(completion), f"{where}, column {completion!r}"
        )
        if not first or (completion and is_empty(answer)):
            yield where, None, None, {}
            continue
        if completion is None and isinstance(first, str):
            refuse_chat(settings, where)
        first = as_chat(first, settings)
        chat = isinstance(first, list) or isinstance(answer, list)
        yield where, first, answer, chat_options(row, where) if chat else {}


def _only_preferences(rows: Rows, settings: DataSettings) -> bool:
    given = {settings.completion_column, "text", "messages"} & set(columns_of(rows))
    return is_preference(rows, settings) and not given


def _columns(rows: Rows, settings: DataSettings, source: str) -> tuple[str, str | None]:
    """Names of the columns with the text (or prompt) and, where there is one, the completion."""
    columns = columns_of(rows)
    if settings.completion_column in columns:
        column = settings.prompt_column or "prompt"
        require_column(rows, column, source, "--data.prompt-column")
        return column, settings.completion_column
    if settings.prompt_column is not None:
        require_column(rows, settings.prompt_column, source, "--data.prompt-column")
        return settings.prompt_column, None
    for column in ("text", "messages"):
        if column in columns:
            return column, None
    raise UserError(
        f"{source} has the columns {', '.join(columns)}; expected 'text', 'messages', or 'prompt' "
        "and 'completion'. Other names are set with --data.prompt-column and "
        "--data.completion-column."
    )


def whole_text(
    tokenizer: Any, first: Any, answer: Any, where: str, options: ChatOptions | None = None
) -> Text:
    """A prompt and its completion, which the loss mask covers; a text alone if answer is None.

    options: what the chat template gets beside the messages.
    """
    if isinstance(first, list) or isinstance(answer, list):
        with beginning_with(where):
            return _chat(tokenizer, first, answer, where, options)
    if answer is None:
        ids = _ended(tokenizer, prompt_ids(tokenizer, first))
        return Text(ids, [False] + [True] * (len(ids) - 1))
    before = prompt_ids(tokenizer, first)
    after = _ended(tokenizer, continuation_ids(tokenizer, first, answer))
    mask = [False] * len(before) + [True] * len(after)
    return Text(before + after, [False, *mask[1:]])  # nothing predicts the very first token


def _chat(tokenizer: Any, first: Any, answer: Any, where: str, options: ChatOptions | None) -> Text:
    """The whole chat as one text. The loss mask covers what the assistant writes: in the answer,
    or anywhere if answer is None."""
    messages = first if answer is None else conversation(first, answer)
    begun = isinstance(answer, str) and isinstance(first, list) and is_begun(first)
    known = 0 if answer is None else len(messages) - (1 if isinstance(answer, str) else len(answer))
    turns = [i for i, message in enumerate(messages) if i >= known and _is_learned(message)]
    if not turns:
        roles = ", ".join(dict.fromkeys(repr(message["role"]) for message in messages))
        raise UserError(
            f"{where}: no message is the assistant's and to be learned (a `weight` of 0 keeps one "
            f"out): the roles are {roles}, expected 'assistant' among them. Rename the roles."
        )

    parts: list[tuple[Messages, dict[str, bool]]] = [(messages[: turns[-1] + 1], CLOSED)]
    for turn in turns:
        parts.append((first, BEGUN) if begun else (messages[:turn], OPENED))
        parts.append((messages[: turn + 1], CLOSED))
    whole, *cuts = (render_chat(tokenizer, part, options, **how) for part, how in parts)
    for before, through in zip(cuts[::2], cuts[1::2]):
        _require_prefixes(before, through, whole, where)
    if reads_special_tokens_as_text(tokenizer):
        ids, *heads = (chat_ids(tokenizer, part, options, **how) for part, how in parts)
        ends = [shared_length(ids, head) for head in heads]
    else:
        ids, ends = ids_and_cuts(tokenizer, whole, cuts)
    mask = [False] * len(ids)
    for start, end in zip(ends[::2], ends[1::2]):
        mask[start:end] = [True] * (end - start)
    eos = tokenizer.eos_token_id
    if eos is not None and eos not in ids[ends[-2] :]:
        ids, mask = [*ids, eos], [*mask, True]
    if not any(mask[1:]):
        raise UserError(f"{where}: the chat template writes nothing of what the assistant says.")
    return Text(ids, [False, *mask[1:]])


def _is_learned(message: dict[str, Any]) -> bool:
    """Whether the assistant wrote it; a `weight` of 0, OpenAI's key, keeps a turn out."""
    return message["role"] == "assistant" and message.get("weight") != 0


def _require_prefixes(before: str, through: str, whole: str, where: str) -> None:
    """Raises unless the template writes a turn as what goes on where the policy began to write."""
    if not whole.startswith(through):
        raise UserError(
            f"{where}: the chat template writes earlier messages differently once a later "
            "one follows, so the assistant's turns can't be told apart. Give the last turn "
            "alone, as columns 'prompt' and 'completion'."
        )
    if not through.startswith(before):
        shared = shared_length(before, through)
        raise UserError(
            f"{where}: the chat template opens the assistant's turn with {before[shared:]!r:.60}, "
            f"but writes the message as {through[shared:]!r:.60}, so what the policy would have "
            "written can't be told. Give the message as the template writes it, or plain text."
        )


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def fitted_text(text: Text, row_filter: RowFilter, where: str, answer: Any = None) -> Text | None:
    """`text` within the context, or None; of a prompt and its answer only the prompt is cut."""
    if answer is None:
        ids = row_filter.fitted(text.ids, where)
    else:
        start = text.prompt_length
        before = row_filter.fitted_prompt(text.ids[:start], len(text.ids) - start, where)
        ids = None if before is None else before + text.ids[start:]
    if ids is None:
        return None
    # what was cut is on the left, but for a BOS that may have been kept in front
    return Text(ids, [False, *text.loss_mask[len(text.ids) - len(ids) + 1 :]])
