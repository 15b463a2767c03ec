"""`lmpg check` names each planted trap with its fix, and is silent about a good set-up."""

from __future__ import annotations

import io
import json
import logging
import random
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from accelerate.state import PartialState

from lmpg.cli.checking import check
from lmpg.language.rollouts import traps
from lmpg.language.rollouts.completed import Talk
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import words
from tests.support.ranks import forked
from tests.support.tiny import save_tiny, tiny_tokenizer

REWARDS = """
import time


def letters(completions):
    return [sum(map(ord, c)) / 1000 - len(c) / 20 for c in completions]  # no two alike


def constant(completions):
    return [1.0 for c in completions]


def raising(completions):
    raise KeyError("answer")


def slow(completions):
    time.sleep(1.2)
    return letters(completions)


def by_prompt(prompts, completions):
    return [float(ord(p[0])) for p in prompts]
"""
SIZES = {
    "sampling.max-new-tokens": 40,
    "update.rollout-size": 8,
    "update.microbatch-size": 8,
    "update.adam-eps": 1e-5,
}


def rows(count, seed=0):
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh ", k=8)) + "?" for _ in range(count)]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Writes a model, prompts and rewards; returns the flags of a good set-up."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lmpg").handlers.clear()

    def make(prompts=(), reward="letters", held_out=None, template=None, **flags):
        save_tiny(tmp_path / "model")
        if template:
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template = template
            tokenizer.save_pretrained(tmp_path / "model")
        (tmp_path / "reward.py").write_text(REWARDS)
        named = {"data.path": prompts or rows(40)} | (
            {"data.eval-path": held_out} if held_out else {}
        )
        for key, texts in named.items():
            (tmp_path / f"{key}.jsonl").write_text(
                "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
            )
        given = {key: tmp_path / f"{key}.jsonl" for key in named}
        reward = {"rewards.functions": f"{tmp_path / 'reward.py'}:{reward}"} if reward else {}
        own = {k.replace("__", ".").replace("_", "-"): v for k, v in flags.items()}
        return {"model.path": tmp_path / "model", **given, **reward, **SIZES, **own}

    return make


def found(capsys, name, flags):
    """The traps that the command names, one for each line, and all that it prints."""
    try:
        check([name, *words(flags)])
        code = 0
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().out
    named = [x.removeprefix("trap: ") for x in said.splitlines() if x.startswith("trap: ")]
    assert code == (1 if named else 0)
    assert Path("runs").exists() is False
    return [line.partition(":")[0] for line in named], said


@catches("a check leaves the run's folder")
@pytest.mark.parametrize(
    ("name", "more"), [("ppo", {}), ("grpo", {"algorithm__group_size": 4}), ("rloo", {})]
)
def test_a_good_set_up_has_no_trap_and_says_what_a_run_needs(parts, capsys, tmp_path, name, more):
    named, said = found(capsys, name, parts(**more))
    assert named == [], said
    for part in ("self-test: ratio 1.0", "memory: about", "a step takes", "no traps found"):
        assert part in said
    assert said.count("prompt    ") == 2
    assert "<eos>" in said  # special tokens are seen
    assert {x.name for x in tmp_path.iterdir()} == {"model", "reward.py", "data.path.jsonl"}


def test_a_stage_is_checked_by_its_data_and_a_step(parts, capsys, tmp_path):
    flags = parts(reward=None) | {"data.completion-column": "prompt"}
    for key in ("sampling.max-new-tokens", "update.rollout-size"):
        flags.pop(key)
    named, said = found(capsys, "sft", flags)
    assert named == [], said
    assert "memory: about" in said
    assert "a step takes" in said
    named, _ = found(capsys, "sft", flags | {"update.learning-rate": 3.0})
    assert named == ["learning rate too high"]


@catches("labels of one kind are no trap")
def test_labelled_answers_and_pairs_are_shown_as_what_they_are_taken_for(parts, capsys, tmp_path):
    texts = [*zip(rows(20), rows(20, seed=1), rows(20, seed=2))]
    data, model = tmp_path / "answers.jsonl", parts()["model.path"]
    flags = {"model.path": model, "data.path": data, "update.minibatch-size": 8}
    for labels, expected in ((True, False), []), ((True, True), ["labels of one kind"]):
        answers = [
            {"prompt": prompt, "completion": one, "label": labels[i % 2]}
            for i, (prompt, one, _) in enumerate(texts)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in answers))
        named, said = found(capsys, "kto", flags)
        assert named == expected, said
        assert "\ndesirable   " in said
    keys = ("prompt", "chosen", "rejected")
    pairs = [json.dumps(dict(zip(keys, row))) for row in texts]
    data.write_text("\n".join(pairs))
    named, said = found(capsys, "reward_model", flags)
    assert named == [], said
    assert [said.count(f"\n{name:<11} ") for name in ("chosen", "rejected")] == [2, 2]


@catches("held-out rows are not looked for in the training data")
def test_traps_of_data_and_settings_are_named(parts, capsys):
    twice, foreign = rows(20) * 2, ["<|user|> hello"] * 8
    capitals = [f"ABCDEFGHIJ {x}" for x in rows(20, seed=1)]
    flags = parts(
        [*twice, *foreign, *capitals], held_out=twice[:4], update__learning_rate=1.0,
        update__warmup_steps=50, run__total_steps=50,
    )  # fmt: skip
    named, _ = found(capsys, "ppo", flags)
    assert named == [
        "held-out rows are trained on", "duplicate rows", "unknown tokens",
        "special tokens of another model", "learning rate too high", "warm-up as long as the run",
    ]  # fmt: skip


def test_few_and_truncated_prompts_are_named(parts, capsys):
    long = [x * 4 for x in rows(12)]
    more = {"data__overlong": "truncate-left", "update__rollout_size": 16}
    named, _ = found(capsys, "ppo", parts(long, **more))
    assert named == ["prompts truncated", "few prompts"]


@catches("a reward that is always the same is no trap")
@pytest.mark.parametrize(
    ("method", "reward", "more", "expected"),
    [
        ("ppo", "constant", {}, ["reward constant"]),
        ("ppo", "raising", {}, ["reward fails"]),
        ("ppo", "slow", {}, ["reward slower than sampling"]),
        ("grpo", "by_prompt", {"algorithm__group_size": 2}, ["no group has a spread"]),
        ("ppo", "letters", {"update__learning_rate": 1e-12}, ["learning rate too low"]),
    ],
)
def test_traps_of_responses_and_rewards_are_named(parts, capsys, method, reward, more, expected):
    named, said = found(capsys, method, parts(reward=reward, **more))
    assert named == expected, said
    if reward == "raising":
        assert "KeyError" in said


TEMPLATE = (
    "{% for m in messages %}<unk>{{ m['content'] }}{% if m['role'] == 'assistant' %}<pad>"
    "{% endif %}{% endfor %}"
)


def test_an_instruct_model_without_chat_and_turns_that_never_end_are_named(parts, capsys):
    flags = parts(template=TEMPLATE)
    named, _ = found(capsys, "ppo", flags)
    assert named == ["an instruct model without chat"]
    named, said = found(capsys, "ppo", flags | {"data.chat": True})
    assert any(x.startswith("turns end by '<pad>', which is no EOS") for x in named), said


def test_agents_are_sent_to_the_checks_of_their_own_command():
    with pytest.raises(UserError, match="lmpg gym"):
        check(["gym", "--env.id", "CartPole-v1"])


def test_what_a_run_refuses_a_check_refuses_with_the_fix(parts):
    with pytest.raises(UserError, match="group_size"):
        check(["grpo", *words(parts(algorithm__group_size=1))])
    with pytest.raises(UserError, match="chat template"):
        check(["ppo", *words(parts(data__chat=True))])


class Alike:
    """Completions that are all the same, or nothing."""

    def __init__(self, text):
        self.texts, self.ids, self.finished = [text] * 4, [[3, 1]] * 4, [True] * 4
        self.talks = []
        if text == "cut":
            self.texts, self.finished = list("abcd"), [False] * 4


@pytest.mark.parametrize(
    ("text", "trap"),
    [
        ("x", "all responses alike"),
        (" ", "all responses empty"),
        ("cut", "all responses cut"),
    ],
)
def test_responses_of_which_nothing_can_be_learned_are_named(text, trap):
    class Scores:
        totals, errors, messages = (1.0, 2.0, 3.0, 4.0), 0, ()

    assert [x.partition(":")[0] for x in traps.of_responses(Alike(text), Scores, 1)] == [trap]


def test_episodes_that_their_environment_cuts_are_no_trap():
    class Scores:
        totals, errors, messages = (1.0, 2.0, 3.0, 4.0), 0, ()

    cut = Alike("cut")
    cut.talks = [Talk([], None, "truncated")] * 4
    assert list(traps.of_responses(cut, Scores, 1)) == []


def test_two_bos_are_named():
    from lmpg.language.data.prompts import Prompt
    from lmpg.language.data.settings import DataSettings

    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<unk>"
    prompts = [Prompt("a", [2, 2, 3 + i]) for i in range(9)]
    named = list(traps.of_data((prompts[1:], prompts[:1]), tokenizer, DataSettings(), (1,)))
    assert named[0].startswith("BOS twice: 8 of 8 texts")


def test_pairs_and_labelled_answers_are_read_by_all_their_texts():
    from types import SimpleNamespace as Of

    text = Of(ids=[1, 2])
    assert traps.ids_of(Of(chosen_ids=[1], rejected_ids=[2])) == [[1], [2]]
    assert traps.ids_of(Of(chosen=text, rejected=text)) == [[1, 2], [1, 2]]
    assert traps.ids_of(Of(text=text)) == [[1, 2]]


def test_what_lies_nowhere_is_refused_before_anything_is_loaded(parts, monkeypatch, tmp_path):
    def fail(*_):
        raise AssertionError("something was made")

    monkeypatch.setattr("lmpg.language.checked.check_language", fail)
    with pytest.raises(UserError, match=r"no_such_file\.py"):
        check(["ppo", *words(parts() | {"rewards.functions": "no_such_file.py:letters"})])


@catches("each process decides by its own responses whether the step is taken")
def test_all_processes_take_the_step_or_none(parts, tmp_path):
    """Of two processes, one alone has responses that cannot be scored."""
    (tmp_path / "half.py").write_text(
        "import os\n\n\ndef half(completions):\n"
        "    failing = os.environ.get('RANK') == '0'\n"
        "    return [None if failing else len(c) + ord((c or ' ')[0]) / 99 for c in completions]\n"
    )
    flags = parts() | {"rewards.functions": f"{tmp_path / 'half.py'}:half"}

    def checked(rank: int) -> str:
        PartialState._reset_state()  # this process was alone before it was forked
        with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
            check(["ppo", *words(flags)])
        return said.getvalue()

    said, _ = forked(2, checked)
    assert said.startswith("2 processes on cpu\n")
    assert "trap: reward fails: 8 of 8 responses have no score" in said
    assert "a step takes" in said  # half of all responses is no more than the run allows
