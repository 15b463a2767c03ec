"""Rows that prefer one answer to another, and where the prompt ends if no column gives it.

Then chosen and rejected begin with it. In text, the prompt is what both have in common up to a
boundary that makes sense: the last turn of a dialogue if there is one, else the end of a word. In
chat messages, it is the leading messages that are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lmpg.language.data.chat import CALLS, ChatOptions, Messages, chat_options, text_or_messages
from lmpg.language.data.chats.wanted import as_chat, refuse_chat
from lmpg.language.data.examples import RowFilter, columns_of, require_column
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.row_store import Row, Rows, changed
from lmpg.runtime.progress import with_progress
from lmpg.settings.section import UserError

# "\n\nHuman: … \n\nAssistant:" of Anthropic's data, headings, and the marks of chat templates
_ASSISTANT = r"(?:Assistant|AI|Bot|Response|Answer|TL;DR)"
_OTHER = r"(?:Human|User|System|Instruction|Input|Question)"
_TURN = re.compile(
    rf"(?:^|\n)[#* ]*(?:(?P<open>{_ASSISTANT})|{_OTHER}):"
    r"|<\|(?:im_start|start_header_id)\|>(?:(?P<mark>assistant)|\w+)(?:<\|end_header_id\|>)?\n+"
    r"|<start_of_turn>(?:(?P<model>model)|\w+)\n|(?P<inst>\[/INST\])"
    r"|<\|(?:(?P<tag>assistant)|user)\|>"
)


@dataclass(frozen=True)
class Preference:
    """A prompt, the preferred answer and another, as text or chat messages; either may be empty.

    options: what the chat template gets beside the messages.
    """

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    options: ChatOptions = field(default_factory=dict)

    def unusable(self) -> str | None:
        """The reason why these are not two different answers to one prompt; None if they are."""
        if self.chosen == self.rejected:
            return "identical"
        if is_empty(self.chosen) or is_empty(self.rejected):
            return "empty"
        firsts = [x[0]["role"] for x in (self.chosen, self.rejected) if isinstance(x, list)]
        return "with different questions" if set(firsts) - {"assistant"} else None


def is_preference(rows: Rows, settings: DataSettings) -> bool:
    """Whether the rows compare two answers."""
    columns = columns_of(rows)
    return settings.chosen_column in columns and settings.rejected_column in columns


def is_empty(answer: Any) -> bool:
    """Whether an answer, text or chat messages, says nothing."""
    if isinstance(answer, list):
        return all(is_empty(x.get("content")) and not any(map(x.get, CALLS)) for x in answer)
    return not answer or (isinstance(answer, str) and not answer.strip())


def preference(row: Row, settings: DataSettings, where: str) -> Preference | None:
    """The prompt of a row, explicit or implicit, and its answers; None without both answers."""

    def read(column: str) -> Any:
        return text_or_messages(row.get(column), f"{where}, column {column!r}")

    chosen, rejected = read(settings.chosen_column), read(settings.rejected_column)
    if not chosen or not rejected:
        return None
    if type(chosen) is not type(rejected):
        raise UserError(f"{where}: one of chosen and rejected is text, the other chat messages.")
    whole = isinstance(chosen, list) and chosen[0]["role"] != "assistant"
    prompt = None if whole else read(settings.prompt_column or "prompt")  # the whole repeats it
    if isinstance(chosen, str) and not prompt:
        refuse_chat(settings, where)
    prompt = prompt and as_chat(prompt, settings)
    options = chat_options(row, where) if list in map(type, (prompt, chosen)) else {}
    if prompt:
        return Preference(prompt, chosen, rejected, options)
    cut = _shared_messages(chosen, rejected) if whole else _boundary(chosen, rejected)
    if isinstance(chosen, list) and not whole:
        cut = 0
    return Preference(as_chat(chosen[:cut], settings), chosen[cut:], rejected[cut:], options)


def usable_preferences(
    rows: Rows, row_filter: RowFilter, settings: DataSettings, source: str
) -> Iterator[tuple[Row, str, Preference]]:
    """Yields (row, where it is, its preference) of usable rows; counts the others."""
    said = with_progress(rows, f"rows of {source} tokenised", len(rows))
    for i, row in enumerate(said):
        where = f"{source}, row {i + 1}"
        found = preference(row, settings, where)
        reason = found.unusable() if found else "empty"
        if found and not reason:
            yield row, where, found
        else:
            row_filter.skipped[str(reason)] += 1


def with_prompt_column(rows: Rows, settings: DataSettings, source: str) -> Rows:
    """The rows; preferences without a column `prompt` get one: what both answers begin with."""
    if settings.prompt_column or "prompt" in rows.columns or not is_preference(rows, settings):
        return rows

    def change(row: Row, i: int) -> Row:
        found = preference(row, settings, f"{source}, row {i + 1}")
        return {**row, "prompt": found.prompt if found else None}

    return changed(rows, change, "prompt")


def require_preference_columns(rows: Rows, settings: DataSettings, source: str) -> None:
    """Raises where a column that the settings name, or that a preference needs, is missing."""
    require_column(rows, settings.chosen_column, source, "--data.chosen-column")
    require_column(rows, settings.rejected_column, source, "--data.rejected-column")
    if settings.prompt_column is not None:
        require_column(rows, settings.prompt_column, source, "--data.prompt-column")


def _shared_messages(chosen: Messages, rejected: Messages) -> int:
    """Number of leading messages that are the same."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    return shared


def _boundary(chosen: str, rejected: str) -> int:
    """Characters of the shared prompt: up to the assistant's last turn, else whole words."""
    pairs = enumerate(zip(chosen, rejected))
    length = min(len(chosen), len(rejected))
    shared = chosen[: next((i for i, (a, b) in pairs if a != b), length)]
    turns = list(_TURN.finditer(shared))
    if turns and any(turns[-1].groupdict().values()):
        return turns[-1].end()
    end = len(shared)
    while end and any(_inside_word(text, end) for text in (chosen, rejected)):
        end -= 1
    while end and shared[end - 1].isspace():  # the space belongs to the word that follows
        end -= 1
    return end


def _inside_word(text: str, at: int) -> bool:
    """Whether a cut before character `at` would split a word, or a sign of several characters."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if unicodedata.category(after)[0] == "M" or "\u200d" in (before, after):
        return True
    wide = unicodedata.east_asian_width(after) in "WF"  # written without spaces: signs are words
    return _in_words(before) and _in_words(after) and not wide


def _in_words(character: str) -> bool:
    return character.isalnum() or character in "'’_.,-/@%"
