"""`lmpg evaluate` against a slow calculation of its own, and what training has helped."""

from __future__ import annotations

import itertools
import json
import re
from types import SimpleNamespace

import pytest

from lmpg.cli.asking import evaluate
from lmpg.cli.main import train_by_name
from lmpg.language.rewards.builtin import numeric_answer
from lmpg.language.trained import told
from lmpg.language.trained.command_settings import EvaluateSettings
from lmpg.language.trained.of_run import asked
from lmpg.runs.folder import read_summary
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import words
from tests.support.tiny import save_tiny

QUESTIONS = [
    {
        "question": f"Ann has {i} figs and eats {i - 3} of them. How many?",
        "answer": f"{i} - {i - 3} = <<{i}-{i - 3}=3>>\n#### 3",
    }
    for i in range(5, 45)
]
SAMPLES = 6


@pytest.fixture(scope="module")
def gsm(tmp_path_factory):
    """A tiny model, questions as GSM8K has them, and a run of GRPO that learns from the answers."""
    folder = tmp_path_factory.mktemp("gsm")
    save_tiny(folder / "model", max_position_embeddings=128)
    (folder / "gsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    flags = {
        "model.path": folder / "model",
        "data.path": folder / "gsm.jsonl",
        "data.prompt-column": "question",
        "rewards.functions": "numeric_answer",
        "sampling.max-new-tokens": 4,
        "algorithm.group-size": 8,
        "update.rollout-size": 64,
        "update.minibatch-size": 64,
        "update.learning-rate": 3e-3,
        "run.total-steps": 5,
        "run.seed": 3,
        "evaluation.size": 8,
        "evaluation.samples": SAMPLES,
        "evaluation.greedy": True,
        "run.output-dir": folder / "run",
    }
    train_by_name("grpo", words(flags))
    return folder


def measured(folder, *flags):
    """What the command writes to its JSON file."""
    evaluate([*map(str, flags), "--output", str(folder / "found.json")])
    return json.loads((folder / "found.json").read_text())


def is_right(text, answer):
    """Whether one text ends in the number behind an answer's ####, by itself."""
    (score,) = numeric_answer([text], [answer])
    if text.isalnum() and "e" not in text:  # without signs, fractions, exponents
        numbers = re.findall(r"\d+", text)
        assert score == ([int(x) for x in numbers[-1:]] == [int(answer.split("#### ")[1])])
    return score == 1


def slow_pass_at(right, k):
    """The share of all choices of k answers that hold a right one, over all questions."""
    shares = []
    for row in right:
        chosen = list(itertools.combinations(row, k))
        shares.append(sum(map(any, chosen)) / len(chosen))
    return sum(shares) / len(shares)


@catches("pass@k by 1 − (1 − c/n)^k", "responses of a prompt stand beside another prompt")
def test_pass_at_k_on_questions_of_gsm8k_is_that_of_a_slow_calculation(gsm, tmp_path):
    found = measured(
        tmp_path,
        *("--model.path", gsm / "run", "--data.path", gsm / "gsm.jsonl"),
        *("--data.prompt-column", "question", "--rewards.functions", "numeric_answer"),
        *("--samples", SAMPLES, "--seed", 5),
    )
    assert [row["prompt"] for row in found["rows"]] == [row["question"] for row in QUESTIONS]
    answers = {row["question"]: row["answer"] for row in QUESTIONS}
    right = [
        [is_right(response["text"], answers[row["prompt"]]) for response in row["responses"]]
        for row in found["rows"]
    ]
    greedy = [is_right(x["greedy"]["text"], answers[x["prompt"]]) for x in found["rows"]]
    metrics = found["metrics"]
    assert 0 < metrics["pass_at_1"] < metrics[f"pass_at_{SAMPLES}"]
    for k in range(1, SAMPLES + 1):
        assert metrics[f"pass_at_{k}"] == pytest.approx(slow_pass_at(right, k), abs=1e-12)
    assert metrics["reward"] == pytest.approx(metrics["pass_at_1"])
    assert metrics["greedy_pass"] == metrics["greedy_reward"] == sum(greedy) / len(greedy)
    lengths = [x["length"] for row in found["rows"] for x in row["responses"]]
    assert metrics["length"] == pytest.approx(sum(lengths) / len(lengths))
    low, high = found["intervals"]["pass_at_1"]
    assert low < metrics["pass_at_1"] < high


@catches("differences the other way round")
def test_comparing_a_runs_start_with_its_end_leaves_out_0_where_training_helped(
    gsm, tmp_path, capsys
):
    flags = ("--model.path", gsm / "run", "--samples", 4, "--held-out", "none")
    found = measured(tmp_path, *flags, "--compare", "start")
    assert found["differences"]["reward"]["low"] > 0
    assert found["metrics"]["reward"] > found["compared"]["metrics"]["reward"]
    rows = zip(found["rows"], found["compared"]["rows"])
    apart = [
        sum(x["score"] for x in a["responses"]) / 4 - sum(x["score"] for x in b["responses"]) / 4
        for a, b in rows
    ]
    assert found["differences"]["reward"]["mean"] == pytest.approx(sum(apart) / len(apart))
    assert re.search(r"reward .*\+0\.\d+ … \+0\.\d+  \*", capsys.readouterr().out)
    same = measured(tmp_path, *flags, "--compare", gsm / "run" / "final")
    assert same["differences"]["reward"] == {"mean": 0, "low": 0, "high": 0}


@catches("a run evaluated on the rows that it has learned from", "another seed than the run's")
def test_a_run_evaluated_by_itself_has_the_figures_of_its_own_last_evaluation(gsm, tmp_path):
    after = read_summary(gsm / "run")["after"]
    found = measured(tmp_path, "--model.path", gsm / "run", "--samples", SAMPLES)
    assert found["prompts"] == 8
    names = ["reward", "reward_std", "pass_at_1", "pass_at_2", "greedy_reward", "distinct"]
    for name in [*names, "length"]:
        assert found["metrics"][name] == pytest.approx(after[name], abs=1e-12), name


def test_what_the_user_gives_wins_over_the_settings_of_the_run(gsm):
    run = str(gsm / "run")
    own = asked(EvaluateSettings, {"model": {"path": run}})
    assert own.data.path == str(gsm / "gsm.jsonl")
    assert (own.data.prompt_column, own.sampling.max_new_tokens) == ("question", 4)
    assert own.rewards.functions == ("numeric_answer",)
    assert own.held_out
    given = {"data": {"path": "other.jsonl"}, "rewards": {"functions": ["length(target=3)"]}}
    other = asked(EvaluateSettings, {"model": {"path": run}, **given})
    assert (other.data.path, other.data.prompt_column) == ("other.jsonl", "question")
    assert other.rewards.functions == ("length(target=3)",)
    assert not other.held_out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--samples 2", "model.path is not set, expected the folder of a run"),
        ("--model.path {gsm}/model", "data.path is not set and .* is no run"),
        ("--model.path {gsm}/modl", "data.path is not set and .*modl is no folder here whose data"),
        ("--model.path {gsm}/model --data.path {gsm}/gsm.jsonl", "no reward is given"),
        ("--model.path {gsm}/run --compare {gsm}/nothing", "compare = .*nothing does not exist"),
        ("--model.path {gsm}/model {own} --compare start", "compare = start with .* no run's"),
        ("--model.path {gsm}/run --output {gsm}", "output = .* cannot be written .it is a folder"),
        ("--model.path {gsm}/run --samples 0", "samples = '0': expected greater than or equal"),
        ("--model.path {gsm}/run --evaluation.samples 4", "did you mean --samples"),
        ("--model.path {gsm}/model {own} --data.prompt-column a", "no column 'a'; its columns are"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_line(gsm, flags, message):
    own = f"--sampling.max-new-tokens 4 --data.path {gsm}/gsm.jsonl"
    own += " --rewards.functions length(target=4)"
    line = flags.format(gsm=gsm, own=own).split()
    with pytest.raises(UserError, match=message):
        evaluate([*line, *([] if "--output" in line else ["--output", str(gsm / "no.json")])])
    assert not (gsm / "no.json").exists()


def test_a_run_that_has_not_finished_is_no_model_yet(gsm, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((gsm / "run" / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"run without final/ .it has not ended yet.*--run.resume"):
        measured(tmp_path, "--model.path", tmp_path / "run")


def test_figures_stand_in_one_column_however_long_their_names_are():
    metrics = {"rewards/a_reward_with_a_long_name": 0.5, "length": 12.0}
    sampled = SimpleNamespace(samples=1)
    found = SimpleNamespace(sampled=sampled, metrics=metrics, intervals={}, model="run")
    assert len({len(line) for line in list(told._figures(found))[1:]}) == 1
    both = SimpleNamespace(first=found, other=found, differences={"length": (0.0, 0.0, 0.0)})
    _, first, second, _ = told._compared(both)
    assert first.index("0.5000") + 6 == second.index("12.0000") + 7


def test_responses_with_escape_codes_do_not_steer_the_terminal(gsm, tmp_path, capsys):
    rows = [{"prompt": "a\x1b[31m", "answer": "#### 1"}, {"prompt": "b", "answer": "#### 2"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--data.path", tmp_path / "rows.jsonl", "--data.prompt-column", "prompt")
    measured(tmp_path, "--model.path", gsm / "run", *data)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"a\x1b[31m" in shown
