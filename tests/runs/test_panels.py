"""Which charts lead the report of each kind of run, and what stands in one chart."""

from __future__ import annotations

import pytest

from tests.runs.test_report import panels_of, run
from tests.support.planted import catches

STAGE = ("loss", "grad_norm", "learning_rate", "eval/loss")
PAIRS = ("rewards/margin", "rewards/accuracy", "rewards/chosen", "rewards/rejected", "logps/chosen")
RUNS = {  # kind: what it logs, how its first charts are called
    "ppo": (
        ("reward", "objective/kl", "value/explained_variance", "policy/entropy", "grad_norm",
         "completions/mean_length", "eval/reward", "time/update"),
        ["Reward", "KL to the reference", "Explained variance", "Entropy", "Response length"],
    ),
    "dpo": (
        (*PAIRS, *STAGE, "eval/margin", "eval/pair_accuracy"),
        ["Margin", "Accuracy", "Rewards of both answers", "log π of both answers", "Loss"],
    ),
    "kto": (
        (*PAIRS[:1], *PAIRS[2:], *STAGE, "drift", "eval/margin", "eval/pair_accuracy"),
        ["Margin", "Pair accuracy", "Rewards of both answers", "log π of both answers", "Loss"],
    ),
    "reward_model": (
        (*STAGE, "pair_accuracy", "margin", "score/chosen", "score/rejected", "eval/margin"),
        ["Pair accuracy", "Margin", "Scores of both texts", "Loss", "Gradient norm"],
    ),
    "sft": (
        (*STAGE, "entropy", "eval/perplexity"),
        ["Loss", "Entropy", "Gradient norm", "Learning rate", "perplexity"],
    ),
    "gym": (
        ("episode/return_mean", "episode/length_mean", "value/explained_variance", "loss/total",
         "policy/entropy", "policy/approx_kl", "eval/return_mean"),
        ["Episode return", "Episode length", "Explained variance", "Entropy", "Size of an update"],
    ),
}  # fmt: skip


@catches("the loss before what it is about")
@pytest.mark.parametrize("kind", RUNS)
def test_the_first_five_of_each_kind_say_what_they_mean_and_when_to_worry(tmp_path, kind):
    names, titles = RUNS[kind]
    first = panels_of(tmp_path, [{"step": s, **dict.fromkeys(names, 0.5)} for s in (1, 2, 3)], {})
    assert [panel.title for panel in first[0][:5]] == titles
    assert all(panel.hint and panel.worry for panel in first[0][:5])


def test_a_run_of_several_turns_shows_how_many_they_are(tmp_path):
    rows = [{"step": s, "reward": 0.5, "environment/turns": 3.0, "environment/truncated": 0.1,
             "policy/entropy": 1.0, "completions/clipped_ratio": 0.0, "eval/turns": 2.5}
            for s in (1, 2)]  # fmt: skip
    shown, others = panels_of(tmp_path, rows, {})
    titles = ["Reward", "Turns", "Entropy", "Cut off", "Episodes cut off"]
    assert ([panel.title for panel in shown], others) == (titles, [])
    assert [series.label for series in shown[1].series] == ["training", "held out"]


def test_what_a_function_logs_is_one_chart_with_its_held_out_figures(tmp_path):
    rows = [{"step": s, "reward": 0.5, "logged/a/b": 0.1, "eval/logged/a/b": 0.2} for s in (1, 2)]
    _, others = panels_of(tmp_path, rows, {"before": {"logged/a/b": 0.0}})
    assert [(panel.title, panel.hint[:16]) for panel in others] == [
        ("logged/a/b", "Mean of what a r")
    ]
    assert [series.points for series in others[0].series] == [
        [(1, 0.1), (2, 0.1)],
        [(0, 0.0), (1, 0.2), (2, 0.2)],
    ]
    page = run(tmp_path, rows, summary={"before": {"logged/a/b": 0.0}})
    assert "logged/a/b 0 – – mean of what a reward function logged" in page.text
