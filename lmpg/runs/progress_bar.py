"""A notebook's progress: one bar in the place of a line for each step."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

from lmpg.runs.progress_line import ProgressLine, columns


class ProgressBar:
    """A bar with what matters most of the last step's metrics, and the time that is left."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._bar: Any = None

    def show(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Move the bar on to a step."""
        if self._bar is None:  # a resumed run's begins where the run goes on
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # without ipywidgets it draws with characters
                from tqdm.auto import tqdm
            self._bar = tqdm(total=self.total_steps, initial=step - 1, desc="step")
        texts = [" ".join(text.split()) for text in columns(metrics)]
        self._bar.set_postfix_str(", ".join(texts), refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def progress(total_steps: int, interval: float) -> ProgressLine | ProgressBar:
    """What shows how far a run has come: a bar in a notebook, else a line at most every `interval`
    seconds."""
    return ProgressBar(total_steps) if in_notebook() else ProgressLine(total_steps, interval)


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)
