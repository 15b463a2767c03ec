"""Reads rows from a task of reasoning-gym, which is an optional dependency."""

from __future__ import annotations

import difflib
from typing import Any

from lmpg.language.data.call_syntax import parsed_call
from lmpg.settings.section import UserError

PREFIX = "reasoning_gym:"


def reasoning_rows(source: str, key: str) -> list[dict[str, Any]]:
    """Rows of `reasoning_gym:TASK` or `reasoning_gym:TASK(size=500, seed=0, …)`.

    Columns: `prompt` and `question`, `answer`, and `reasoning_gym`, from which the reward of that
    name makes the question again to score an answer. The arguments are those of the task.
    """
    name, given = parsed_call(source.removeprefix(PREFIX), key)
    arguments = {"seed": 0, **given}  # without a seed it would ask other questions each time
    try:
        import reasoning_gym
    except ImportError:
        raise UserError(
            f"{key}: {source} needs reasoning-gym, which is not installed: "
            "pip install 'lmpg[reasoning]'"
        ) from None
    _require_task(name, source, key)
    try:
        entries = list(reasoning_gym.create_dataset(name, **arguments))
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{key}: reasoning-gym refuses {source}: {error}") from None
    return [
        {
            "prompt": entry["question"],
            "question": entry["question"],
            "answer": entry["answer"],
            "reasoning_gym": {"task": name, "arguments": arguments, "index": index},
        }
        for index, entry in enumerate(entries)
    ]


def _require_task(name: str, source: str, key: str) -> None:
    from reasoning_gym.factory import DATASETS

    if name in DATASETS:
        return
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"{key}: {source}: reasoning-gym has no task {name!r}.{hint} It has: "
        f"{', '.join(sorted(DATASETS))}."
    )
