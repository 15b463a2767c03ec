"""What comes from the Hub: the commits that were read, and what to do where access is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_COMMIT = re.compile(r"[0-9a-f]{40}")
_commits: dict[str, str] = {}
"""Name of a model or a data set → the commit that this process has read last."""


def remember_commit(name: str, place: str | Path) -> None:
    """Keep which commit of `name` was read; place: where the cache has it, below a folder that is
    called like the commit."""
    found = [part for part in Path(place).parts if _COMMIT.fullmatch(part)]
    if found:
        _commits[name] = found[-1]


def commits_of(settings: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, str]]:
    """Dotted setting → name on the Hub → commit, of all names in nested settings that were read
    from there."""
    found: dict[str, dict[str, str]] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= commits_of(value, f"{prefix}{key}.")
        elif own := {name: _commits[name] for name in _names(value)}:
            found[prefix + key] = own
    return found


def _names(value: Any) -> Iterator[str]:
    for name in value if isinstance(value, list | tuple) else [value]:
        if isinstance(name, str) and name.partition(":")[0] in _commits:
            yield name.partition(":")[0]


def access_advice(error: BaseException | None) -> str:
    """What to do where the Hub refuses to hand something over; "" for other errors."""
    kinds, said = set[str](), ""
    while error is not None:
        kinds |= {kind.__name__ for kind in type(error).__mro__}
        said += str(error)
        error = error.__cause__ or error.__context__
    if "GatedRepoError" in kinds or "is a gated" in said:
        return (
            "it is gated: ask for access on its page on the Hub, then log in by `hf auth login` or "
            "set the variable HF_TOKEN to a token of that account"
        )
    if "RepositoryNotFoundError" in kinds or "DatasetNotFoundError" in kinds:
        return (
            "the Hub has nothing of that name, or it is private: mend the name, or log in by "
            "`hf auth login` or the variable HF_TOKEN with an account that may read it"
        )
    return ""
