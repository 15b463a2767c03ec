"""Texts for supervised training, with the tokens that are to be learned marked.

From rows with `prompt` and `completion` (only the completion is learned), `messages` (only the
assistant's turns), `text` (all of it), or preferences (only the chosen answer). Text and
completions end with EOS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lmpg.language.data.chat import Messages, conversation, is_messages, render_chat
from lmpg.language.data.preference_rows import is_empty, is_preference, preference
from lmpg.language.data.row_filter import Sieve, size_line
from lmpg.language.data.rows import Row, columns_of, require_column
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.splits import load_split
from lmpg.language.data.tokenizing import continuation_ids, prompt_ids, start_ids
from lmpg.settings.section import UserError


@dataclass(frozen=True)
class Text:
    """Token ids, and for each whether it is to be predicted (never the first)."""

    ids: list[int]
    learned: list[bool]

    @property
    def start(self) -> int:
        """Index of the first token to be predicted: the length of what is only read."""
        return self.learned.index(True)


@dataclass(frozen=True)
class TextSet:
    """Texts to train on, texts held out, and what was left out (reason → rows)."""

    train: list[Text]
    held_out: list[Text]
    skipped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    def line(self) -> str:
        """How many there are, and what was left out, for the log."""
        return size_line("texts", self.train, self.held_out, self.skipped, self.truncated)


def load_texts(settings: DataSettings, tokenizer: Any, max_tokens: int) -> TextSet:
    """Texts of `data.path`, held-out ones from `data.eval_path` or else held back."""
    sieve = Sieve(max_tokens, settings.overlong, start_ids(tokenizer), "text")
    train, held_out = load_split(
        settings, lambda rows, source: _read(rows, tokenizer, sieve, settings, source)
    )
    return TextSet(train, held_out, dict(sieve.skipped), sieve.truncated)


def texts_from_rows(rows: list[Row], tokenizer: Any, max_tokens: int) -> list[Text]:
    """Texts of rows in memory, which have the default columns."""
    sieve = Sieve(max_tokens, "error", start_ids(tokenizer), "text")
    return _read(rows, tokenizer, sieve, DataSettings(), "rows")


def _read(
    rows: list[Row], tokenizer: Any, sieve: Sieve, settings: DataSettings, source: str
) -> list[Text]:
    texts = []
    for where, first, answer in _parts(rows, settings, source):
        if first is None:
            sieve.skipped["empty"] += 1
            continue
        text = fitting(whole_text(tokenizer, first, answer, where), sieve, where, answer)
        if text is not None:
            texts.append(text)
    return sieve.some(texts, len(rows), source)


def _parts(rows: list[Row], settings: DataSettings, source: str) -> Iterator[tuple[str, Any, Any]]:
    """Of each row where it is, its text or prompt (None if it is of no use), and its completion
    (None if there is none, as the whole text is learned)."""
    of_preferences = _only_preferences(rows, settings)
    column, completion = ("", None) if of_preferences else _columns(rows, settings, source)
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if of_preferences:
            found = preference(row, settings, where)
            answered = found is not None and not is_empty(found.chosen)
            yield (where, found.prompt, found.chosen) if found and answered else (where, None, None)
            continue
        first, answer = row.get(column), row.get(completion) if completion else None
        usable = bool(first) and not (completion and is_empty(answer))
        yield (where, first, answer) if usable else (where, None, None)


def _only_preferences(rows: list[Row], settings: DataSettings) -> bool:
    given = {settings.completion_column, "text", "messages"} & set(columns_of(rows))
    return is_preference(rows, settings) and not given


def _columns(rows: list[Row], settings: DataSettings, source: str) -> tuple[str, str | None]:
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


def whole_text(tokenizer: Any, first: Any, answer: Any, where: str) -> Text:
    """Ids of a prompt and its completion, which is learned; of a text alone if answer is None."""
    for value in (first, answer):
        if not (value is None or isinstance(value, str) or is_messages(value)):
            raise UserError(
                f"{where} holds {type(value).__name__} {str(value)[:60]!r}, expected text or "
                "chat messages."
            )
    if is_messages(first) or is_messages(answer):
        messages = first if answer is None else conversation(first, answer)
        added = len(answer) if isinstance(answer, list) else 1
        known = 0 if answer is None else len(messages) - added
        return _chat(tokenizer, messages, known, where)
    if answer is None:
        ids = _ended(tokenizer, prompt_ids(tokenizer, first))
        return Text(ids, [False] + [True] * (len(ids) - 1))
    before = prompt_ids(tokenizer, first)
    after = _ended(tokenizer, continuation_ids(tokenizer, first, answer))
    learned = [False] * len(before) + [True] * len(after)
    return Text(before + after, [False, *learned[1:]])  # nothing predicts the very first token


def _chat(tokenizer: Any, messages: Messages, known: int, where: str) -> Text:
    """Only what the assistant writes is learned, and of that only messages from `known` on."""
    ids: list[int] = []
    learned: list[bool] = []
    done = ""
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= known]
    if not turns:
        raise UserError(f"{where}: no message is the assistant's, so there is nothing to learn.")
    for turn in turns:
        before = render_chat(tokenizer, messages[:turn], open_turn=True)
        through = render_chat(tokenizer, messages[: turn + 1], open_turn=False)
        if not (before.startswith(done) and through.startswith(before)):
            raise UserError(
                f"{where}: the chat template writes earlier messages differently once a later "
                "one follows, so the assistant's turns can't be told apart. Give the last turn "
                "alone, as columns 'prompt' and 'completion'."
            )
        for text, wanted in ((before[len(done) :], False), (through[len(before) :], True)):
            piece = continuation_ids(tokenizer, "", text)
            ids += piece
            learned += [wanted] * len(piece)
        done = through
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in piece:
        ids, learned = [*ids, tokenizer.eos_token_id], [*learned, True]
    return Text(ids, [False, *learned[1:]])


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def fitting(text: Text, sieve: Sieve, where: str, answer: Any = None) -> Text | None:
    """`text` within the context, or None; of a prompt and its answer only the prompt is cut."""
    if answer is None:
        ids = sieve.fit(text.ids, where)
    else:
        before = sieve.before(text.ids[: text.start], len(text.ids) - text.start, where)
        ids = None if before is None else before + text.ids[text.start :]
    return None if ids is None else cut(text, ids)


def cut(text: Text, ids: list[int]) -> Text:
    """`text` after its ids were cut on the left (their first may be the BOS that was kept)."""
    learned = text.learned[len(text.learned) - len(ids) :]
    return Text(ids, [False, *learned[1:]])
