"""A run as Python sees it: its folder, and what lies there."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lmpg.language.api.outcomes import Compared
from lmpg.language.api.tables import Page, Summary, Table, html_table
from lmpg.runs.files import whole_model
from lmpg.runs.folder import CONFIG, REPORT, read_summary
from lmpg.runs.log_lines import log_rows
from lmpg.runs.report.write import write_report
from lmpg.settings.section import UserError


class Run:
    """A run in its folder, as `lmpg.train` returns it and `lmpg.load` finds it.

    Everything is read from there when it is first asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of the run, as its config.yaml has them."""
        return yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8"))

    @property
    def summary(self) -> Summary:
        """summary.json: metrics before and after, the exit reason, times; {} until the run ends."""
        return Summary(read_summary(self.folder))

    @property
    def metrics(self) -> Table:
        """The metrics of every step, a dict each."""
        return Table(log_rows(self.folder / "metrics.jsonl"))

    @property
    def samples(self) -> Table:
        """Prompts, completions and scores that were written while the run went on."""
        return Table(log_rows(self.folder / "samples.jsonl"))

    @property
    def model_path(self) -> Path:
        """The folder of the trained model; of a run with adapters, of the whole model."""
        final = self.folder / "final"
        if not final.is_dir():
            raise UserError(
                f"{self.folder} holds no final/ yet: the run has not come to its end. Go on with "
                f"the same lmpg.train(…) and run={{'output_dir': '{self.folder}', 'resume': True}}"
            )
        return whole_model(final)

    @cached_property
    def model(self) -> Any:
        """The trained model, of transformers, float32, on the CPU, in eval mode."""
        from lmpg.language.models.loading import load_causal_lm, load_sequence_classifier

        path, trusted = str(self.model_path), self.settings["model"]["trust_remote_code"]
        config = json.loads((self.model_path / "config.json").read_text(encoding="utf-8"))
        kinds = config.get("architectures") or [""]
        if kinds[0].endswith("ForSequenceClassification"):
            return load_sequence_classifier(path, trust_remote_code=trusted)
        return load_causal_lm(path, trusted)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that was saved with the model."""
        from lmpg.language.models.loading import load_tokenizer

        return load_tokenizer(str(self.model_path), self.settings["model"]["trust_remote_code"])

    def report(self) -> Page:
        """report.html, written anew; a notebook shows it, elsewhere it is a path."""
        write_report(self.folder)
        return Page(self.folder / REPORT)

    def __repr__(self) -> str:
        summary = self.summary
        said = f"{summary['exit_reason']} after {summary['steps']} steps" if summary else "going on"
        return f"Run({str(self.folder)!r}, {said})"

    def _repr_html_(self) -> str:
        summary = self.summary
        before, after = summary.get("before", {}), summary.get("after", {})
        rows = [[name, before.get(name), after.get(name)] for name in {**before, **after}]
        table = html_table(["held out", "before", "after"], rows)
        return f"<p>{html.escape(repr(self))}</p>{table}"


def load(folder: str | Path) -> Run:
    """The run in a folder, finished or not."""
    path = Path(folder).expanduser()
    if not (path / CONFIG).is_file():
        inside = (path.parent / CONFIG).is_file()
        hint = f"; did you mean {path.parent}?" if inside else ""
        raise UserError(f"{path} holds no run of lmpg, expected a folder with a {CONFIG}{hint}")
    run = Run(path)
    if "env" in run.settings:
        raise UserError(
            f"{path} holds a run in an environment, expected one of a language model; load it with "
            "lmpg.gym.load"
        )
    return run


def compare(runs: Iterable[Run | str | Path]) -> Compared:
    """Runs, or folders of runs, side by side: those that differ in their seeds alone are one."""
    from lmpg.runs.side_by_side.compared_runs import compare as compared

    listed = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    return Compared(compared([x.folder if isinstance(x, Run) else Path(x) for x in listed]))
