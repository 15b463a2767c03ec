"""Real trackers' stores, read back: what arrives there, and that a killed run has no step twice."""

from __future__ import annotations

import json

import pytest

from tests.support import tracked
from tests.support.doomed import live
from tests.support.programs import metrics, outcome, own_parts, run_here
from tests.support.tracked import logged, sessions

STORES = {
    "tensorboard": lambda folder: tracked.of_tensorboard(folder / "run"),
    "trackio": lambda folder: tracked.of_trackio(folder / "trackio", "p"),
    "wandb": lambda folder: tracked.of_wandb(folder / "run"),
    "mlflow": lambda folder: tracked.of_mlflow("p"),
}


@pytest.fixture
def session(tmp_path):
    yield from sessions(tmp_path)


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """The stores of real trackers lie in the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(STORES))
def test_metrics_settings_and_samples_are_read_back_from_the_trackers_own_store(
    session, stores, tmp_path, kind, capsys
):
    pytest.importorskip(kind)
    first = logged(session(kind), 1, 2)
    state = first.state()
    logged(first, 3, 4).close()
    logged(session(kind, checkpoint=state), 3, 4, 5, scale=10.0).close()
    assert "warning" not in capsys.readouterr().out
    steps, config, shown = STORES[kind](tmp_path)
    again = 10.0 if kind == "tensorboard" else 1.0
    expected = [(1, 1.0), (2, 2.0), (3, 3.0 * again), (4, 4.0 * again), (5, 50.0)]
    assert [(step, numbers["reward"]) for step, numbers in steps] == expected
    assert all(numbers["objective/kl"] == 0.5 for _, numbers in steps)
    assert (config["model.path"], config["data.fields"]) == ("m", "a b")
    assert len(shown) == 3  # of steps 1, 3 and 5
    assert all("completion" in text and "0.5" in text for text in shown)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_shows_each_step_once_and_learns_what_it_learns_without_trackers(tmp_path):
    pytest.importorskip("tensorboard")
    parts = own_parts(tmp_path) | {"run.total-steps": 4, "run.save-every": 2, "run.report-every": 0}
    plain = outcome(run_here("ppo", {**parts, "run.output-dir": tmp_path / "plain"}))
    own = {"run.output-dir": tmp_path / "run", "run.trackers": "tensorboard", "run.name": "mine"}
    code, _ = live("ppo", {**parts, **own}, at=7, within="metrics.jsonl")
    assert code != 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]  # 3 and 4 are not saved
    code, output = live("ppo", {**parts, **own, "run.resume": True})
    assert code == 0, output
    assert "at step 2" in output
    assert outcome(tmp_path / "run") == plain
    steps, config, shown = tracked.of_tensorboard(tmp_path / "run")
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    written = metrics(tmp_path / "run")
    assert [x["reward"] for _, x in steps] == pytest.approx([x["reward"] for x in written])
    assert (config["algorithm.name"], config["run.name"]) == ("ppo", "mine")
    assert len(shown) == len(set(shown)) > 1
