"""`lmpg diagnose overoptimisation`: from what a run logged, and from its samples."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml

from lmpg.cli.diagnosing import diagnose
from lmpg.cli.main import train_by_name
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import own_parts, words

GOLD = """
def few(completions, number):
    return [-float(c.count("a")) + 0 * n for c, n in zip(completions, number)]


def silent(completions):
    return [None for c in completions]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose score is the number of a's; it logs a reward of weight 0, KL and samples."""
    folder = tmp_path_factory.mktemp("hacked")
    flags = own_parts(folder)
    (folder / "gold.py").write_text(GOLD)
    flags |= {
        "rewards.functions": f"{folder / 'reward.py'}:coarse {folder / 'gold.py'}:few".split(),
        "rewards.weights": [1, 0],
        "algorithm.kl-coef": 0.001,
        "algorithm.group-size": 4,
        "update.learning-rate": 3e-3,
        "run.total-steps": 6,
        "run.output-dir": folder / "run",
    }
    train_by_name("grpo", words(flags))
    return folder


def found(run, tmp_path, *flags):
    """What the command writes to its JSON file."""
    place = tmp_path / "found.json"
    diagnose(["overoptimisation", str(run / "run"), *flags, "--output", str(place)])
    assert "<svg" in place.with_suffix(".html").read_text()
    return json.loads(place.read_text())


def logged(run, name):
    """Rows of a log of the run."""
    return [json.loads(line) for line in (run / "run" / name).read_text().splitlines()]


@catches("the score of another step beside the gold")
def test_a_gold_reward_of_weight_0_is_read_from_the_metrics(run, tmp_path, capsys):
    points = found(run, tmp_path, "--gold", "few")["points"]
    rows = sorted(logged(run, "metrics.jsonl"), key=lambda row: row["objective/kl"])
    assert [x["kl"] for x in points] == [row["objective/kl"] for row in rows]
    assert [x["proxy"] for x in points] == [row["objective/scores"] for row in rows]
    assert [x["gold"] for x in points] == [row["rewards/few/mean"] for row in rows]
    assert re.search(r"KL \(nats\) +score +gold", capsys.readouterr().out)


@catches("gold scores in another order than the samples")
def test_a_gold_function_scores_the_samples_with_the_columns_of_the_data(run, tmp_path):
    gold = f"{run / 'gold.py'}:few"
    told = found(run, tmp_path, "--gold", gold, "--points", "3")
    points = told["points"]
    rows = [x for x in logged(run, "samples.jsonl") if x["score"] is not None]
    assert sum(x["responses"] for x in points) == len(rows)
    kls = {row["step"]: row["objective/kl"] for row in logged(run, "metrics.jsonl")}
    for steps, point in zip(((1, 2), (3, 4), (5, 6)), sorted(points, key=lambda x: x["step"])):
        of = [row for row in rows if row["step"] in steps]
        assert point["responses"] == len(of)
        assert point["gold"] == pytest.approx(
            -sum(x["completion"].count("a") for x in of) / len(of)
        )
        assert point["proxy"] == pytest.approx(sum(x["score"] for x in of) / len(of))
        assert point["kl"] == pytest.approx(sum(kls[row["step"]] for row in of) / len(of))
        assert point["gold_error"] > 0


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ("coarse", "gold = rewards/coarse/mean has the weight 1 in the score"),
        ("reward", "gold = eval/reward is the score that"),
        ("objective/scores", "gold = objective/scores is the score that"),
        ("gone.py:few", "gold = gone.py:few is neither a metric"),
        ("fwe", "gold = fwe is neither a metric"),
    ],
)
def test_what_is_no_gold_is_refused_with_the_reason(run, tmp_path, gold, said):
    with pytest.raises(UserError, match=re.escape(said)):
        found(run, tmp_path, "--gold", gold)


@pytest.mark.parametrize("gold", ["few", "FILE"])
def test_a_run_whose_reward_was_an_object_of_python_is_followed_too(run, tmp_path, gold):
    shutil.copytree(run / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["rewards"]["functions"] = ["memory:coarse", "memory:few"]
    config.write_text(yaml.safe_dump(values))
    gold = f"{run / 'gold.py'}:few" if gold == "FILE" else gold
    assert len(found(tmp_path, tmp_path, "--gold", gold)["points"]) >= 3


def test_a_run_that_left_too_little_is_refused_with_the_reason(run, tmp_path):
    with pytest.raises(UserError, match="scores none of the"):
        found(run, tmp_path, "--gold", f"{run / 'gold.py'}:silent")
    rows = [{k: v for k, v in x.items() if "kl" not in k} for x in logged(run, "metrics.jsonl")]
    bare = tmp_path / "run"
    bare.mkdir()
    for name in ("config.yaml", "samples.jsonl", "summary.json"):
        (bare / name).write_text((run / "run" / name).read_text())
    (bare / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "never logged objective/kl: train with --algorithm.kl-coef above 0"
    with pytest.raises(UserError, match=re.escape(said)):
        found(tmp_path, tmp_path, "--gold", "few")
    with pytest.raises(UserError, match="holds no run"):
        found(tmp_path / "nowhere", tmp_path, "--gold", "few")
    with pytest.raises(UserError, match="gold"):
        found(run, tmp_path)
