"""What each of accelerate's trackers wants: how a run begins there and goes on, and its tables.

Trackers are imported when a run uses them, never before.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker is to show it.

    key: what the tracker knows it by; of a new run the key that it is to get, where the tracker
    leaves that to us. going_on: whether the tracker has it already. first_step: the first one that
    is logged now. config: all settings by their dotted names.
    """

    project: str
    name: str
    folder: Path
    key: str
    going_on: bool
    first_step: int
    config: dict[str, Any] = field(default_factory=dict)


def started(kind: str, run: TrackedRun) -> Any:
    """accelerate's tracker of this kind, with the run begun or gone on with.

    Where the tracker has no account to log in to, or the network is not there, it keeps the run on
    this machine if it can.
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers ask it who is the main process
    made, offline = LOGGER_TYPE_TO_CLASS[kind], OFFLINE.get(kind, {})
    given, named = ARGUMENTS[kind](run)
    account = ACCOUNTS.get(kind)
    tracker = made(*given, **named, **(offline if account and not account() else {}))
    try:
        tracker.start()
    except Exception:
        if not offline or offline.items() <= tracker.init_kwargs.items():
            raise
        tracker = made(*given, **named, **offline)
        tracker.start()
    if kind not in CONFIG_AT_START and not (run.going_on and kind in FIXED_CONFIG):
        tracker.store_init_configuration(run.config)
    return tracker


def log(
    kind: str, tracker: Any, step: int, numbers: Mapping[str, float], rows: Sequence[Row]
) -> None:
    """A step's numbers, and its samples as a table where there are some."""
    shown = TABLES[kind](tracker, step, *table(rows)) if rows else {}
    tracker.log({**numbers, **shown}, step=step)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells of sample rows. Messages and parts of scores become JSON; the
    numbers of tokens are left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [x for x in names if all(_fits(row.get(x)) for row in rows)]
    return columns, [[_cell(row.get(x)) for x in columns] for row in rows]


def _fits(value: Any) -> bool:
    if isinstance(value, dict):
        return not any(isinstance(x, list | dict) for x in value.values())
    return not isinstance(value, list) or all(isinstance(x, dict) for x in value)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _markdown(columns: list[str], cells: list[list[Any]]) -> str:
    """A table whose texts stay text."""

    def line(values: Sequence[Any]) -> str:
        texts = (html.escape("" if x is None else str(x)) for x in values)
        marked = (x.replace("|", "&#124;").replace("\n", "<br>") for x in texts)
        return f"| {' | '.join(marked)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, cells)])


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _wandb(run: TrackedRun) -> Arguments:
    import wandb

    settings = wandb.Settings(console="off", init_timeout=30)
    named = {"name": run.name, "dir": str(run.folder), "id": run.key, "resume": "allow"}
    return (run.project,), {**named, "settings": settings}


def _trackio(run: TrackedRun) -> Arguments:
    resume = "allow" if run.going_on else "never"
    return (run.project,), {
        "name": run.name, "resume": resume, "config": run.config, "embed": False
    }  # fmt: skip


def _mlflow(run: TrackedRun) -> Arguments:
    key = {"run_id": run.key} if run.going_on else {}
    return (run.project,), {"run_name": run.name, **key}


def _tensorboard(run: TrackedRun) -> Arguments:
    return ("tensorboard", str(run.folder)), {"purge_step": run.first_step}


def _comet_ml(run: TrackedRun) -> Arguments:
    import comet_ml

    config = comet_ml.ExperimentConfig(
        name=run.name, offline_directory=str(run.folder / "comet_ml"), parse_args=False
    )
    named = {"experiment_key": run.key, "mode": "get_or_create", "experiment_config": config}
    return (run.project,), named


def _aim(run: TrackedRun) -> Arguments:
    key = {"run_hash": run.key, "force_resume": True} if run.going_on else {}
    quiet = {"system_tracking_interval": None, "capture_terminal_logs": False}
    return (run.name, "."), {"experiment": run.project, **quiet, **key}


def _clearml(run: TrackedRun) -> Arguments:
    key: dict[str, Any] = {"reuse_last_task_id": False}
    if run.going_on:
        key = {"reuse_last_task_id": run.key, "continue_last_task": 0}  # steps are not moved on
    quiet = {"auto_connect_arg_parser": False, "auto_connect_frameworks": False}
    return (run.project,), {"task_name": run.name, **quiet, **key}


def _swanlab(run: TrackedRun) -> Arguments:
    named = {"name": run.name, "id": run.key, "resume": "allow"}
    return (run.project,), {**named, "log_dir": str(run.folder / "swanlab")}


ARGUMENTS: dict[str, Callable[[TrackedRun], Arguments]] = {
    "aim": _aim,
    "clearml": _clearml,
    "comet_ml": _comet_ml,
    "mlflow": _mlflow,
    "swanlab": _swanlab,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
"""What accelerate's class of a tracker is made with."""

CONFIG_AT_START = {"trackio"}
"""These take the settings with their other arguments, each time anew."""
FIXED_CONFIG = {"clearml", "mlflow", "tensorboard"}
"""These refuse settings that have changed, or show them as a further run."""
REWINDS = {"tensorboard"}
"""These forget the numbers of steps from `first_step` on; the others keep all that they have."""
OFFLINE: dict[str, dict[str, Any]] = {
    "comet_ml": {"online": False},
    "swanlab": {"mode": "offline"},
    "wandb": {"mode": "offline"},
}
"""What makes a tracker with a server keep the run on this machine, to be uploaded later."""
KEYS: dict[str, Callable[[Any], str]] = {
    "aim": lambda run: str(run.hash),
    "clearml": lambda task: str(task.id),
    "mlflow": lambda run: str(run.info.run_id),
}
"""The key of those that choose it themselves."""


def _wandb_account() -> bool:
    import wandb

    if "WANDB_MODE" in os.environ:
        return True
    try:
        return wandb.login(prompt=False, verify=False)
    except TypeError:  # an older one
        return wandb.api.api_key is not None


def _comet_account() -> bool:
    import comet_ml

    return comet_ml.get_config("comet.api_key") is not None


ACCOUNTS: dict[str, Callable[[], bool]] = {"wandb": _wandb_account, "comet_ml": _comet_account}
"""Whether an account is known, of those that would ask for it on the console."""


def _logged_table(tracker: Any, step: int, columns: list[str], cells: list) -> dict[str, Any]:
    tracker.log_table("samples", columns, cells, step=step)
    return {}


def _trackio_table(tracker: Any, step: int, columns: list[str], cells: list) -> dict[str, Any]:
    import pandas
    import trackio

    frame = pandas.DataFrame(cells, columns=columns)
    return {"samples": trackio.Table(dataframe=frame)}


def _mlflow_table(tracker: Any, step: int, columns: list[str], cells: list) -> dict[str, Any]:
    import mlflow

    data = {name: [row[i] for row in cells] for i, name in enumerate(columns)}
    mlflow.log_table(data, f"samples/step_{step:06d}.json")
    return {}


def _text(tracker: Any, step: int, columns: list[str], cells: list) -> dict[str, Any]:
    return {"samples": _markdown(columns, cells)}


def _comet_table(tracker: Any, step: int, columns: list[str], cells: list) -> dict[str, Any]:
    tracker.tracker.log_table(f"samples_{step:06d}.csv", cells, columns)
    return {}


def _aim_text(tracker: Any, step: int, columns: list[str], cells: list) -> dict[str, Any]:
    import aim

    return {"samples": aim.Text(_markdown(columns, cells))}


def _swanlab_text(tracker: Any, step: int, columns: list[str], cells: list) -> dict[str, Any]:
    import swanlab

    return {"samples": swanlab.Text(_markdown(columns, cells))}


TABLES: dict[str, Callable[[Any, int, list[str], list], dict[str, Any]]] = {
    "aim": _aim_text,
    "clearml": _logged_table,
    "comet_ml": _comet_table,
    "mlflow": _mlflow_table,
    "swanlab": _swanlab_text,
    "tensorboard": _text,
    "trackio": _trackio_table,
    "wandb": _logged_table,
}
"""How a tracker gets a table: logs it, or returns what is to be logged with the numbers."""
