"""Stages of the built-in worlds: what they learn from, and that it works."""

from __future__ import annotations

import json
import random

import pytest

from lmpg.cli.command import run
from lmpg.cli.main import settings_of
from lmpg.language.stages import STAGES
from lmpg.language.worlds import addition, reviews
from lmpg.language.worlds.registry import WORLDS, world_asked_for
from lmpg.language.worlds.tasks import sums as task
from lmpg.settings.section import UserError
from tests.language.worlds.test_worlds import small, worlds_of_the_session  # noqa: F401
from tests.support.programs import let_go, metrics

HAVING = [(world, stage) for world, recipe in WORLDS.items() for stage in recipe.STAGES]


@pytest.mark.parametrize(("world", "stage"), HAVING)
def test_every_stage_of_a_world_has_valid_settings(world, stage):
    settings = settings_of(stage, ["--data.world", world])
    assert settings.update.learning_rate > 1e-5
    assert stage in STAGES


def test_reviews_has_every_stage_and_addition_all_but_a_reward_model():
    assert reviews.STAGES.keys() == STAGES.keys()
    assert addition.STAGES.keys() == STAGES.keys() - {"reward_model"}


def test_a_world_gives_its_data_to_a_model_of_ones_own_that_asks_by_name():
    assert world_asked_for({}) == "reviews"
    assert world_asked_for({"data": {"world": "addition"}}) == "addition"
    own = {"model": {"path": "mine"}, "data": {"world": "addition"}}
    assert world_asked_for(own) is None
    assert world_asked_for({**own, "data": {"path": "world:addition"}}) == "addition"
    with pytest.raises(UserError, match="no such world, expected one of world:reviews, world:ad"):
        world_asked_for({"data": {"path": "world:revews"}})


@pytest.fixture
def few_problems(small, monkeypatch):  # noqa: F811
    """The addition world with a tiny model and few problems; its answers are drawn by lot."""
    held_out, checked, rest = task.parts([16, 16], random.Random(0))
    parts = {"held out": held_out, "checked": checked, "train": rest[:40]}
    monkeypatch.setattr(addition, "_problems", lambda: parts)
    monkeypatch.setattr(addition, "ENOUGH", 0.0)
    rng = random.Random(0)

    def by_lot(model, rows, each, key):
        options = [(row["answer"], "7", "") for row in rows for _ in range(each)]
        return [rng.choice(x) for x in options]

    monkeypatch.setattr(addition, "sampled_answers", by_lot)
    return parts


def test_answers_to_compare_are_the_models_own_to_the_problems_it_trains_on(few_problems):
    world = addition.preference_pairs()
    answers = {row["prompt"]: row["answer"] for row in few_problems["train"]}
    assert world.train_rows
    for row in world.train_rows:
        assert row["chosen"] == answers[row["prompt"]] != row["rejected"]
    judged = addition.labelled_completions().train_rows
    assert {row["prompt"] for row in judged} <= answers.keys()
    assert all(row["label"] == (row["completion"] == answers[row["prompt"]]) for row in judged)
    assert all(row["completion"] for row in judged)
    assert addition.preference_pairs() == world


def test_the_settings_that_a_run_leaves_start_it_again(few_problems, tmp_path):
    flags = ["--run.total-steps", "2", "--evaluation.size", "4"]
    first, again = (str(tmp_path / name) for name in ("first", "again"))
    run(["train", "ipo", "--data.world", "addition", *flags, "--run.output-dir", first])
    run(["train", "--config", f"{first}/config.yaml", "--run.output-dir", again])
    assert metrics(tmp_path / "first") == metrics(tmp_path / "again")
    let_go()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("worlds_of_the_session")
@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_learning_from_its_own_answers_the_model_of_addition_gains_20_points(stage, tmp_path):
    flags = ["--data.world", "addition", "--run.torch-threads", "1"]
    run(["train", stage, *flags, "--run.output-dir", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["accuracy"] >= summary["before"]["accuracy"] + 0.2
    assert summary["after"]["pair_accuracy"] > 0.95
    let_go()
