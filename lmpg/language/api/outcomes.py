"""What `lmpg.evaluate` and `lmpg.generate` return, with tables for notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmpg.language.api.tables import Summary, Table, frame, html_table
from lmpg.language.data.chat import as_text

if TYPE_CHECKING:
    from lmpg.language.trained.measured import Evaluated
    from lmpg.language.trained.responses import Response
    from lmpg.runs.side_by_side.compared_runs import Comparison


class EvaluationResult:
    """What was measured of a model: metrics, their 95 % intervals, and every response.

    differences: of each metric to the model that it was compared with, as (mean, low, high).
    """

    def __init__(self, found: Evaluated) -> None:
        from lmpg.language.trained.told import as_json

        self.found = found
        told = as_json(found)
        self.metrics = Summary(told["metrics"])
        self.intervals: dict[str, list[float]] = told["intervals"]
        self.differences = dict(found.differences)
        self.samples = Table(told["rows"])

    def __repr__(self) -> str:
        from lmpg.language.trained.told import lines

        return "\n".join(lines(self.found))

    def _repr_html_(self) -> str:
        rows = [
            [name, value, _interval(self.intervals.get(name)), *self._apart(name)]
            for name, value in self.metrics.items()
            if name in self.intervals or name in self.found.first.whole
        ]
        head = ["", self.found.first.model, "95 %"]
        if self.found.other is not None:
            head += [f"less {self.found.other.model}", "95 %"]
        return html_table(head, rows)

    def _apart(self, name: str) -> list[Any]:
        if self.found.other is None:
            return []
        if name not in self.differences:
            return ["", ""]
        mean, *ends = self.differences[name]
        return [mean, _interval(ends)]


class Compared:
    """Runs side by side: figures after training, with intervals over the seeds; a page of curves.

    page: the whole page as HTML. `save(path)` writes it.
    """

    def __init__(self, found: Comparison) -> None:
        self.found = found

    @property
    def page(self) -> str:
        """The page, one self-contained file."""
        return self.found.html()

    def save(self, path: str | Path) -> Path:
        """Write the page; returns where."""
        Path(path).write_text(self.page, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        return "\n".join(self.found.lines())

    def _repr_html_(self) -> str:
        return frame(self.page)


class Texts(list[Any]):
    """The responses to each prompt: a text, or where there are several samples a list of texts.

    responses: the same with their prompts, lengths, and whether they ended by themselves.
    """

    def __init__(self, responses: list[list[Response]]) -> None:
        self.responses = responses
        texts = [[x.text for x in of_prompt] for of_prompt in responses]
        super().__init__([x[0] if len(x) == 1 else x for x in texts])

    def _repr_html_(self) -> str:
        rows = [[as_text(x.prompt), x.text] for of_prompt in self.responses for x in of_prompt]
        return html_table(["prompt", "response"], rows)


def _interval(ends: list[float] | None) -> str:
    return f"{ends[0]:.4g} … {ends[1]:.4g}" if ends else ""
