"""Experiment trackers: what arrives there, that no step is there twice, and that a run needs none.

Trackers are doubles of accelerate's interface here; test_tracked_stores.py has real ones.
"""

from __future__ import annotations

import json
import sys
import threading
import types

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker

from lmpg.runs.resumable import MAY_DIFFER
from lmpg.runs.settings import Tracking
from lmpg.runs.trackers import kinds, mirrors
from tests.support.planted import catches
from tests.support.tracked import logged, sessions


@pytest.fixture
def session(tmp_path):
    yield from sessions(tmp_path)


class Double(GeneralTracker):
    """accelerate's interface; its store outlives it, as a server's does."""

    name, requires_logging_directory = "double", False
    stores: dict = {}  # noqa: RUF012
    broken: dict = {}  # noqa: RUF012

    def __init__(self, *given, **named):
        super().__init__()
        self.given, self.init_kwargs = given, named

    def start(self):
        self._meet("start")
        key = next((str(v) for k, v in self.init_kwargs.items() if k in KEYED), "new")
        self.store = self.stores.setdefault(key, {"steps": [], "config": [], "made": []})
        self.store["made"].append((self.given, self.init_kwargs))
        self.hash = self.id = key

    @property
    def tracker(self):
        return types.SimpleNamespace(
            hash=self.hash, id=self.id, info=types.SimpleNamespace(run_id=self.id),
            log_table=lambda *given: self.store["steps"].append(("table", given)),
        )  # fmt: skip

    def store_init_configuration(self, values):
        self.store["config"].append(values)

    def log(self, values, step=None, **kwargs):
        self._meet("log")
        self.store["steps"].append((step, values))

    def log_table(self, name, columns=None, data=None, dataframe=None, step=None):
        self.store["steps"].append(("table", (name, columns, data)))

    def finish(self):
        self._meet("finish")
        self.store["finished"] = True

    def _meet(self, when):
        if when in self.broken:
            self.broken[when](self)


KEYED = ("id", "run_id", "run_hash", "experiment_key", "reuse_last_task_id")
LIBRARIES = {
    "aim": {"Text": str},
    "clearml": {},
    "comet_ml": {"ExperimentConfig": dict, "get_config": lambda key: "account"},
    "mlflow": {"log_table": lambda data, file: None},
    "swanlab": {"Text": str},
    "tensorboard": {},
    "trackio": {"Table": lambda dataframe: dataframe.to_dict("list")},
    "wandb": {"Settings": dict, "login": lambda prompt, verify: True},
}


@pytest.fixture
def doubles(monkeypatch):
    """All of accelerate's trackers are doubles; returns what they have stored."""
    Double.stores, Double.broken = {}, {}
    for kind, parts in LIBRARIES.items():
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, kind, Double)
        monkeypatch.setitem(sys.modules, kind, types.SimpleNamespace(**parts))
    monkeypatch.setattr(mirrors, "find_spec", lambda name: True)
    return Double.stores


def steps_of(store):
    return [step for step, _ in store["steps"] if step != "table"]


def test_every_tracker_of_the_settings_is_known_to_accelerate_and_has_all_it_needs():
    names = set(Tracking.__args__)
    assert names == set(kinds.ARGUMENTS) == set(kinds.TABLES)
    assert names <= set(accelerate.tracking.LOGGER_TYPE_TO_CLASS)
    assert {"run.trackers", "run.project", "run.name"} <= MAY_DIFFER


@catches(
    "a resumed run begins anew in its tracker", "steps made again are given to a tracker again"
)
@pytest.mark.parametrize("kind", sorted(LIBRARIES))
def test_a_resumed_run_goes_on_in_its_tracker_and_has_no_step_twice(session, doubles, kind):
    first = logged(session(kind), 1, 2)
    state = first.state()
    logged(first, 3, 4).close()
    logged(session(kind, checkpoint=state), 3, 4, 5, scale=10.0).close()
    again = kind == "tensorboard"  # it forgets what is made again
    (store, *_), others = list(doubles.values()), list(doubles)[1:]
    if kind in ("mlflow", "aim", "clearml"):  # it was called "new", then by the key it had said
        assert others == []
    if again:
        assert [x[1]["purge_step"] for x in store["made"]] == [1, 3]
    assert steps_of(store) == ([1, 2, 3, 4, 3, 4, 5] if again else [1, 2, 3, 4, 5])
    assert store["finished"]
    if kind not in kinds.CONFIG_AT_START:
        config = store["config"][0]
        assert (config["model.path"], config["data.fields"]) == ("m", "a b")
        assert len(store["config"]) == (1 if kind in kinds.FIXED_CONFIG else 2)


@catches("how far the trackers have come is forgotten when a resumed run is killed, too")
def test_a_run_that_is_killed_while_it_makes_steps_again_repeats_none_of_them(session, doubles):
    first = logged(session("wandb"), 1, 2)
    state = first.state()
    logged(first, 3, 4, 5, 6)
    logged(session("wandb", checkpoint=state), 3)  # killed again, before it is where it had been
    first.close()
    third = logged(session("wandb", checkpoint=state), 3, 4, 5, 6, 7)
    third.close()
    assert steps_of(*doubles.values()) == [1, 2, 3, 4, 5, 6, 7]


def test_steps_that_are_kept_as_they_were_are_told_of_once(session, doubles, capsys):
    first = logged(session("wandb"), 1)
    state = first.state()
    logged(first, 2, 3).close()
    logged(session("wandb", checkpoint=state), 2, 3, 4).close()
    said = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line]
    assert said == [
        "wandb has steps 2 to 3 already and keeps them as they were; metrics.jsonl has them as "
        "they are made again"
    ]


def test_another_project_gets_a_run_of_its_own(session, doubles):
    first = logged(session("wandb"), 1, 2)
    state = first.state()
    first.close()
    logged(session("wandb", checkpoint=state, project="q"), 3).close()
    made = [store["made"][0] for store in doubles.values()]
    assert [(given[0], named["name"]) for given, named in made] == [("p", "run"), ("q", "run")]
    assert [steps_of(store) for store in doubles.values()] == [[1, 2], [3]]


@pytest.mark.parametrize("kind", sorted(LIBRARIES))
def test_samples_arrive_as_a_table_with_the_numbers_of_their_step(session, doubles, kind):
    logged(session(kind), 1).close()
    text = str(doubles)
    assert "0.5" in text
    if kind != "mlflow":  # whose double keeps nothing
        assert "completion" in text
        assert "values" not in text
    if kind in ("tensorboard", "aim", "swanlab"):
        assert "| &lt;b&gt;&#124;x | y<br>z | 0.5 |" in text


@catches("nobody is told of an exception in a tracker", "the run waits for a tracker that hangs")
@pytest.mark.parametrize("when", ["start", "log", "finish"])
@pytest.mark.parametrize("how", ["raises", "exits", "hangs"])
def test_a_tracker_that_fails_costs_nothing_and_is_told_of_once(
    session, doubles, tmp_path, capsys, monkeypatch, when, how
):
    monkeypatch.setattr(mirrors, "PATIENCE", 0.05 if how == "hangs" else 20.0)
    release = threading.Event()

    def fail(self):
        if how == "hangs":
            release.wait(20)
        elif how == "raises":
            raise ConnectionError("no\nnetwork")
        else:
            raise SystemExit(1)

    Double.broken = {when: fail}
    t = logged(session("mlflow"), 1, 2, 3)
    t.close()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "lmpg mlflow":
            thread.join(5)
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    why = {"hangs": "it has not finished within", "raises": "ConnectionError: no network"}
    assert len(said) == 1, said
    assert why.get(how, "SystemExit: 1") in said[0]
    assert "the run goes on without it" in said[0]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["wandb", "comet_ml", "swanlab"])
def test_without_network_a_tracker_with_a_server_keeps_the_run_on_this_machine(
    session, doubles, kind, capsys
):
    def fail(self):
        if not kinds.OFFLINE[kind].items() <= self.init_kwargs.items():
            raise ConnectionError("no network")

    Double.broken = {"start": fail}
    logged(session(kind), 1).close()
    assert steps_of(*doubles.values()) == [1]
    assert "warning" not in capsys.readouterr().out


@catches("a run without an account is asked for one")
@pytest.mark.parametrize("kind", ["wandb", "comet_ml"])
def test_without_an_account_nobody_is_asked_for_one(session, doubles, kind, monkeypatch):
    monkeypatch.setitem(kinds.ACCOUNTS, kind, lambda: False)
    logged(session(kind), 1).close()
    ((made,),) = [store["made"] for store in doubles.values()]
    assert kinds.OFFLINE[kind].items() <= made[1].items()


def test_a_tracker_that_is_not_installed_is_told_of_at_the_start(session, capsys, monkeypatch):
    monkeypatch.setattr(mirrors, "find_spec", lambda name: None)
    t = session("wandb", "wandb")
    assert "wandb: it is not installed (pip install wandb); the run" in capsys.readouterr().out
    logged(t, 1).close()
    assert "warning" not in capsys.readouterr().out


def test_a_run_without_trackers_leaves_no_file_of_theirs(session, tmp_path):
    logged(session(), 1).close()
    assert not (tmp_path / "run" / mirrors.FILE).exists()
