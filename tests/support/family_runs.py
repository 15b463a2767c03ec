"""What becomes of a tiny model of a family in a run, in the words of the tables in docs/models.md.

`python -m tests.support.family_runs` tries all of them and writes the tables.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmpg.language.models.architectures import trunk_of
from lmpg.language.models.forward.padding import bears_padding
from lmpg.settings.section import UserError
from tests.support.causal_families import FAMILIES, UNTRIED, save_family, tiny_of_family
from tests.support.programs import ROOT, outcome, own_parts, run_here

PAGE = ROOT / "docs" / "models.md"
SHORT = {
    "update.epochs": 1,
    "update.rollout-size": 4,
    "update.minibatch-size": 2,
    "sampling.max-new-tokens": 6,
    "evaluation.size": 2,
    "update.learning-rate": 1e-3,
}
REASONS = {
    "changes hidden states before": "its head is more than a linear layer on the trunk",
    "there is something between them": "its head is more than a linear layer on the trunk",
    "other probabilities when others follow": "it is not causal: it sees later tokens",
    "keeps nothing between tokens": "it keeps no cache between tokens",
    "fails on texts of different lengths": "it fails on texts of different lengths",
    "fails on texts in its precision": "it fails in bf16",
    "fails on a plain text": "it does not read token ids alone",
    "Unrecognized configuration class": "transformers loads no causal LM from what it saves",
    "the self-test failed": "with padded prompts it samples from other numbers than it learns from",
}
"""What stands in the table, by what the refusal says."""


@dataclass(frozen=True)
class Tried:
    """engine: whose decode steps sample. together: which prompts do. refused: why, or ""."""

    engine: str = ""
    together: str = ""
    refused: str = ""


def tried(kind: str, precision: str, folder: Path, **more: Any) -> Tried:
    """Two steps of PPO, and the same resumed after the first, which must come to the same. more:
    flags."""
    flags: dict[str, Any] = {**own_parts(folder), **SHORT, "model.precision": precision, **more}
    flags |= {"model.path": folder / kind, "run.total-steps": 2}
    save_family(folder / kind, kind)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            whole = run_here("ppo", {**flags, "run.output-dir": folder / "whole"})
            flags["run.output-dir"] = folder / "resumed"
            run_here("ppo", {**flags, "run.total-steps": 1})
            run_here("ppo", {**flags, "run.resume": True})
    except UserError as error:
        (reason,) = {short for sign, short in REASONS.items() if sign in str(error)}
        return Tried(refused=reason)
    assert outcome(folder / "resumed") == outcome(whole)
    own = "sampled by the CPU engine" in said.getvalue()
    padded = bears_padding(trunk_of(tiny_of_family(kind)))
    return Tried("lmpg's" if own else "transformers'", "all" if padded else "of one length")


def row(found: dict[str, Tried]) -> list[str]:
    """The cells of a family's row, from what became of it in each precision."""
    refused = found["fp32"].refused
    if refused:
        return [refused]
    precisions = ", ".join(p for p, x in found.items() if not x.refused)
    return [found["fp32"].engine, found["fp32"].together, precisions]


def documented() -> dict[str, list[str]]:
    """The cells of each family's row in the page's tables."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| `")]
    return {cells[0].strip("`"): cells[2:] for cells in rows}


def tables(rows: dict[str, list[str]]) -> str:
    """The page's tables: of families that are trained, of others, and of those not tried."""
    classes = {kind: f"`{kind}` | {FAMILIES[kind]}" for kind in FAMILIES}
    trained = {kind: cells for kind, cells in rows.items() if len(cells) > 1}
    lines = [
        f"### Trained: {len(trained)}",
        "",
        "| family | class | decoded by | sampled together | in |",
    ]
    lines += [
        "|---" * 5 + "|",
        *(f"| {classes[k]} | {' | '.join(x)} |" for k, x in trained.items()),
    ]
    others = {kind: cells for kind, cells in rows.items() if len(cells) == 1}
    lines += [
        "",
        f"### Refused: {len(others)}",
        "",
        "| family | class | because |",
        "|---" * 3 + "|",
    ]
    lines += [f"| {classes[kind]} | {cells[0]} |" for kind, cells in others.items()]
    lines += ["", f"### Not tried: {len(UNTRIED)}", "", "| family | class | because |"]
    lines += ["|---" * 3 + "|", *(f"| {classes[k]} | {why} |" for k, why in UNTRIED.items())]
    return "\n".join(lines) + "\n"


def write(rows: dict[str, list[str]]) -> None:
    """Puts the tables in the place of those on the page, which end it."""
    head = PAGE.read_text(encoding="utf-8").split("### Trained")[0]
    PAGE.write_text(head + tables(rows), encoding="utf-8")


if __name__ == "__main__":
    found = {}
    for name in FAMILIES:
        if name not in UNTRIED:
            with tempfile.TemporaryDirectory() as place:
                results = {p: tried(name, p, Path(place) / p) for p in ("fp32", "bf16")}
            found[name] = row(results)
    write(found)
