"""docs/metrics.md explains every metric that a run of any kind logs."""

from __future__ import annotations

import json

import pytest

from lmpg.gym.classic import METHODS
from lmpg.runs.report.meanings import METRICS, meaning
from tests.gym.classic.test_classic_runs import run as run_agent
from tests.support.planted import catches
from tests.support.programs import ROOT, SHAPED, module_at, own_parts, run_here, with_kind

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
GROUPS = {"algorithm.group-size": 4, "algorithm.kl-coef": 0.1}
TERMS = {"algorithm.kl-in": "loss", "algorithm.entropy-coef": 0.01, "algorithm.kl-target": 1.0}
ONLINE = {
    "ppo": SHAPED | TERMS,
    "ppo_penalty": {},
    "dapo": GROUPS | {"sampling.max-refills": 2},
    "remax": {},
    "gkd": {"model.teacher": "other"},
    "distillation": {"model.teacher": "other"},
}
PAIRS = ("dpo", "mpo", "bco_pair", "kto", "bco")
TEXTS = ("sft", "dft", "reward_model")
QUICK = {"ppo", "dapo", "dpo", "kto", "reward_model", "trpo", "td_lambda"}


def each(names):
    """A test for every method, few of them among the fast ones."""
    kinds = [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]
    return pytest.mark.parametrize("name", kinds)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    parts = own_parts(folder) | {"run.total-steps": 2, "evaluation.every": 1}
    rows = [{"chosen": f"a{i}: good", "rejected": f"a{i}: {'b' * (1 + i % 3)}"} for i in range(20)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parts


def logged(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line)} - {"step"}


def unexplained(names):
    """Metrics that are not in the table of the page."""
    return sorted(name for name in names if meaning(name) is None)


@catches("a metric that the page does not have")
@each(ONLINE)
def test_metrics_of_language_models_are_explained(parts, tmp_path, name):
    flags = with_kind(parts, ONLINE[name]) | {"run.output-dir": tmp_path / "run"}
    names = logged(run_here(name, flags))
    assert len(names) > 30
    assert unexplained(names) == []


@each([*PAIRS, *TEXTS])
def test_metrics_of_stages_are_explained(parts, tmp_path, name):
    kept = ("model.path", "run.total-steps", "evaluation.every")
    flags = {key: parts[key] for key in kept} | {"run.output-dir": tmp_path / "run"}
    flags |= {"data.path": parts["model.path"].parent / "pairs.jsonl", "update.minibatch-size": 4}
    if name in PAIRS:
        flags |= {"evaluation.size": 2, "evaluation.max-new-tokens": 3}
    names = logged(run_here(name, flags))
    assert len(names) > 8
    assert unexplained(names) == []


@each([*METHODS, "ppo", "reinforce"])
def test_metrics_of_agents_are_explained(tmp_path, name):
    own: dict = {} if name in METHODS else {"update.minibatch-size": 64, "update.epochs": 2}
    flags = {"run.total-timesteps": 192, **own}
    names = logged(run_agent(tmp_path / "run", name, **flags))
    assert len(names) > 4
    assert unexplained(names) == []


def test_the_page_has_the_table_that_reports_are_made_with():
    assert module_at(ROOT / "docs" / "metrics_table.py").tables() in PAGE
    assert all(f"`{name}`" in PAGE for name in METRICS)


def test_names_with_a_part_of_the_users_are_known():
    assert meaning("rewards/my_reward/mean")[0] == "my_reward"
    assert meaning("rewards/a/b/std")[0] == "Spread of a/b"
    assert meaning("eval/kl")[2].startswith("nats per response to the reference")
    assert meaning("my/metric") is None
