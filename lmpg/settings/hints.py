"""Hints: what a user meant by a name that is none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from lmpg.settings.foreign_names import ABSENT, FOREIGN

ENVIRONMENT = "environment"
OF_TEXT = "environments of text are for policy-gradient methods, such as lmpg train ppo or grpo"
"""What to say of that section where there is none."""


def did_you_mean_setting(name: str, known: Collection[str]) -> str:
    """`did you mean …?` with the settings that a misspelt or foreign name may stand for, or why
    there is none (`ABSENT`); "" where nothing is close. Flags (`--update.lr`) are answered by
    flags, names in YAML by names."""
    flag = name.startswith("--")
    section = name.removeprefix("--").partition(".")[0]
    if section == ENVIRONMENT and not any(path.startswith(f"{ENVIRONMENT}.") for path in known):
        return OF_TEXT + (", an agent's is given as env.id" if "env.id" in known else "")
    path = name.removeprefix("--").replace("-", "_")
    if (leaf := path.rpartition(".")[2].lower()) in ABSENT:
        return ABSENT[leaf]
    found = meant(path, known)
    right = [f"--{path}".replace("_", "-") if flag else path for path in found]
    return f"did you mean {' or '.join(right)}?" if right else ""


def meant(path: str, known: Collection[str]) -> list[str]:
    """The known dotted names that a wrong one may stand for: what other tools call so (`FOREIGN`),
    those with the same last part, or the closest by its letters."""
    *sections, leaf = path.split(".")
    for start in range(len(sections)):
        if found := _foreign(".".join([*sections[start:], leaf]), known):
            return found
    foreign, section = _foreign(leaf, known), ".".join(sections)
    if found := [k for k in foreign if k.rpartition(".")[0] == section]:  # as sampling.max_tokens
        return found
    if same_leaf := [k for k in known if k.rpartition(".")[2] == leaf]:
        return [*foreign, *same_leaf][:3]
    if foreign:
        return foreign
    if close := difflib.get_close_matches(path, list(known), n=1, cutoff=0.6):
        return close
    by_leaf = {k.rpartition(".")[2]: k for k in known}
    return [by_leaf[m] for m in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)]


def _foreign(name: str, known: Collection[str]) -> list[str]:
    return [path for path in FOREIGN.get(name.lower(), "").split() if path in known]


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`did you mean …? ` where a known word is close; capitals and signs do not count, and of words
    that are equally close the one with the same letters comes first."""
    plain = {_plain(k): k for k in known}
    wanted = _plain(word)
    close = difflib.get_close_matches(wanted, plain)
    close.sort(key=lambda x: sorted(x) != sorted(wanted))
    return f"did you mean {plain[close[0]]}? " if close else ""


def _plain(word: str) -> str:
    """`Dr. GRPO` as `dr_grpo`, `REINFORCE++` as `reinforce_plus_plus`."""
    return re.sub(r"\W+", "_", word.lower().replace("++", "_plus_plus")).strip("_")
