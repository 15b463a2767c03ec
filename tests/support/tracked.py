"""Sessions of a tracked run, and what trackers have kept of it, read back from their own stores."""

from __future__ import annotations

import json
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lmpg.runs.tracking import Tracker

ROWS = [
    {
        "prompt": "<b>|x",
        "completion": "y\nz",
        "score": 0.5,
        "values": [0.1],
        "tokens": {"values": [1]},
    }
]


def sessions(place: Path) -> Iterator[Any]:
    """Yields what starts a session of a run in `place`/run; all are closed in the end."""
    made: list[Tracker] = []
    folder = place / "run"

    def start(*trackers, checkpoint=None, project="p"):
        folder.mkdir(exist_ok=True)
        made.append(Tracker(folder, 100, console_interval=60.0))
        if checkpoint is not None:
            made[-1].cut_back(checkpoint)
        run = {"trackers": list(trackers), "project": project, "name": None}
        made[-1].start({"run": run, "model": {"path": "m"}, "data": {"fields": ["a", "b"]}})
        return made[-1]

    yield start
    for one in made:
        one.close()


def logged(tracker: Tracker, *steps: int, scale: float = 1.0) -> Tracker:
    """A session that has logged these steps, the odd ones with samples."""
    for step in steps:
        tracker.samples(step, ROWS if step % 2 else [])
        tracker.log(step, {"reward": step * scale, "objective/kl": 0.5, "text": "x", "nan": None})
    return tracker


Kept = tuple[list[tuple[int, dict[str, float]]], dict[str, Any], list[str]]
"""Steps with their numbers in the order they came, the settings, and the samples' texts."""


def of_tensorboard(folder: Path) -> Kept:
    """The events under a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    steps: dict[int, dict[str, float]] = {}
    twice = []
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            row = steps.setdefault(event.step, {})
            twice += [(event.step, {})] if name in row else []
            row[name] = event.value
    texts = [t for t in events.Tags()["tensors"] if t.startswith("samples")]
    shown = [e.tensor_proto.string_val[0].decode() for t in texts for e in events.Tensors(t)]
    files = (folder / "tensorboard").glob("*/hparams.yml")
    config = next((yaml.safe_load(x.read_text()) for x in files), {})
    return [*sorted(steps.items()), *twice], config, shown


def of_trackio(store: Path, project: str) -> Kept:
    """A project's data base; one run is in it."""
    base = sqlite3.connect(store / f"{project}.db")
    rows = base.execute("select step, metrics from metrics order by id").fetchall()
    steps = [(step, json.loads(text)) for step, text in rows]
    shown = [json.dumps(x.pop("samples")["_value"]) for _, x in steps if "samples" in x]
    ((config,),) = base.execute("select config from configs").fetchall()
    base.close()
    return steps, json.loads(config), shown


def of_mlflow(project: str) -> Kept:
    """The one run of an experiment."""
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    assert run.info.status == "FINISHED"
    history = [
        (point.step, name, point.value)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    ]
    names = sorted({name for _, name, _ in history})
    first = [(step, {n: v}) for step, n, v in history if n == names[0]]
    steps = [(step, x | {n: v for s, n, v in history if s == step}) for step, x in first]
    tables = client.list_artifacts(run.info.run_id, "samples")
    shown = [
        mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{table.path}") for table in tables
    ]
    return steps, run.data.params, shown


def of_wandb(folder: Path) -> Kept:
    """The offline files under a run's folder, all of one run."""
    steps, config, shown, keys = [], {}, [], set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in _all_wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                keys.add((record.run.run_id, record.run.project, record.run.display_name))
            for item in record.config.update:
                config[item.key] = json.loads(item.value_json)
            numbers = {
                "/".join(x.nested_key) or x.key: json.loads(x.value_json)
                for x in record.history.item
            }
            if numbers:
                steps.append((record.history.step.num, numbers))
    assert len(keys) == 1, keys
    for table in sorted((folder / "wandb").glob("offline-run-*/files/media/table/*.json")):
        shown.append(table.read_text())
    return steps, config, shown


def _all_wandb_records(path: Path) -> list[Any]:
    """Once its service has written the last one, shortly after the run has finished."""
    for _ in range(100):
        records = list(_wandb_records(path.read_bytes()))
        if records[-1:] and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def _wandb_records(data: bytes) -> Iterator[Any]:
    """The protocol buffers of an offline file: a log of fragments in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2 as proto

    at, whole = 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            record = proto.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
