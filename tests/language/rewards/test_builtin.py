"""Built-in rewards: what they score, what they are told, and how they are named."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

import pytest

from lmpg.language.rewards.answers import final_number
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches


def scored(spec: str, completions: list, ids: list | None = None, prompts=None, **columns: list):
    """The scores of one reward, written as in settings."""
    count = len(completions)
    with Scorer(RewardSettings(functions=(spec,)), columns=columns) as scorer:
        return scorer.score(prompts or ["p"] * count, completions, ids or [[1]] * count, columns)


@catches("thousands cut at the comma", "the minus of 7-5 read as a sign")
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 42.", 42),
        ("1,234,567 apples", 1234567),
        ("1{,}234", 1234),
        ("3, 4, 5", 5),
        ("1,2345", 2345),
        ("costs $3.50", Fraction(7, 2)),
        (r"\$3.50", Fraction(7, 2)),
        ("50%", 50),
        ("x = -5", -5),
        ("−5", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("+7", 7),
        ("7-5", 5),
        ("f(3)-4", 4),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-3 / 4 of it", Fraction(-3, 4)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("24/2 = 12", 12),
        ("1.5e3", 1500),
        (r"\boxed{7}, and then 8", 7),
        (r"\boxed{\frac{1}{2}} of 9", Fraction(1, 2)),
        ("12 * 3 = 36\n#### 42\n\nQuestion: are 3", 42),
        ("#### -1,000", -1000),
        ("#### 3? No.\n#### 42", 42),
        ("none", None),
        ("", None),
        ("1/0", None),
        ("9" * 5000, None),
    ],
)
def test_the_final_number_of_an_answer_in_words(text, number):
    assert final_number(text) == number


def test_numeric_answer_compares_values_with_a_reference_as_in_gsm8k():
    completions = ["It is 0.5", "so 1/2", r"\boxed{\frac12}", "no idea", "0.51"]
    scores = scored("numeric_answer", completions, answer=["Half of 1.\n#### 0.50"] * 5)
    assert scores.totals == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert list(scores.by_reward) == ["numeric_answer"]


def test_a_reference_without_a_number_costs_its_sample_the_score():
    scores = scored("numeric_answer", ["1", "2"], answer=["one", 2])
    assert scores.totals == [None, 1.0]
    assert "the reference 'one' holds no number" in scores.messages[0]


def test_exact_match_ignores_space_around():
    assert scored("exact_match", [" 7\n", "7.", "seven"], answer=[7] * 3).totals == [1, 0, 0]


def test_formats_match_as_a_whole_or_in_part():
    pattern = "<think>.*</think>\\s*<answer>(yes|no)</answer>"
    completions = ["<think>a\nb</think><answer>no</answer>", "<think></think><answer>no</answer>."]
    assert scored(f"matches_format(pattern={pattern!r})", completions).totals == [1, 0]
    assert scored(f"matches_format(pattern={pattern!r}, search=True)", completions).totals == [1, 1]


def test_a_pattern_that_never_ends_costs_its_sample_the_score():
    settings = RewardSettings(functions=("matches_format(pattern='(a+)+')",), timeout=0.5)
    with Scorer(settings) as scorer:
        scores = scorer.score(["p"] * 2, ["aaa", "a" * 64 + "b"], [[1]] * 2, {})
    assert scores.totals == [1.0, None]


def test_length_falls_from_its_target_on_both_sides():
    ids = [[1] * n for n in (10, 8, 12, 5, 16, 99)]
    scores = scored("length(target=10, tolerance=2)", [""] * 6, ids)
    assert scores.totals == pytest.approx([0, 0, 0, -0.3, -0.4, -1])


def test_repetition_costs_the_share_of_n_grams_that_came_before():
    ids = [[1, 2, 3, 4], [1, 1, 1, 1, 1], [1, 2, 1, 2, 1], [1, 1]]
    assert scored("repetition", [""] * 4, ids).totals == pytest.approx([0, -2 / 3, -1 / 3, 0])
    spec = "repetition(n=2, max_penalty=-2)"
    assert scored(spec, [""] * 4, ids).totals == pytest.approx([0, -1.5, -1, 0])


def test_completions_of_chat_prompts_are_read_too():
    chat = [[{"role": "user", "content": "1 + 1?"}]]
    assert scored("numeric_answer", ["2"], prompts=chat, answer=["2"]).totals == [1.0]


@catches("a column of the data replaces an argument that the user set")
def test_arguments_reach_functions_of_the_users_too_and_names_stay_plain(tmp_path):
    (tmp_path / "mine (1).py").write_text(
        "def f(completions, weight, tags=()): return [weight * len(tags) for _ in completions]\n"
        "def g(completions, **rest): return [rest['weight'] for _ in completions]\n"
    )
    file = tmp_path / "mine (1).py"
    specs = (
        f"{file}:f(weight=2, tags=['a:b', '(c)'])",
        f"{file}:f(weight=3)",
        f"{file}:g(weight=5)",
    )
    with Scorer(
        RewardSettings(functions=(*specs, "length(target=1)", "length(target=2)"))
    ) as scorer:
        assert scorer.names == ["f", "mine (1).f", "g", "length", "length_2"]
        scores = scorer.score(["p"], ["c"], [[1]], {"weight": [100]})
    assert [values[0] for values in scores.by_reward.values()] == [4, 0, 5, 0, -0.5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("numeric_anwser", r"no built-in reward 'numeric_anwser'. Did you mean numeric_answer\?"),
        ("foo", r"Built in are: exact_match, numeric_answer, .*FILE.py:NAME"),
        ("length", "length: TypeError: .*'target'"),
        ("length(target=0)", r"ValueError: target = 0, tolerance = 0: expected > 0 and >= 0"),
        ("length(taget=3)", "has no parameter 'taget'. It has: completion_ids, target, tolerance"),
        ("length(3)", r"arguments are given by name, as in length\(n=3\)"),
        ("length(target=3", "doesn't parse, expected NAME"),
        ("length(target=open('x'))", r"the value of target is open\('x'\), expected a number"),
        ("length(target={1})", "the value of target is [{]1[}], expected"),
        ("length(completions=3)", "sets completions, which comes with every batch"),
        ("matches_format(pattern='(')", "matches_format.*: error: missing"),
        ("matches_format()", "required keyword-only argument: 'pattern'"),
        (
            "numeric_answer",
            r"the column 'answer', but the data has only: prompt, solution.*-column",
        ),
        ("reasoning_gym", r"'reasoning_gym', .*--data.path reasoning_gym:TASK"),
        ("repetition(max_penalty=1)", "max_penalty = 1: expected >= 1 and <= 0"),
    ],
)
def test_what_cannot_work_is_refused_at_once(spec, message):
    with pytest.raises(UserError, match=message):
        Scorer(RewardSettings(functions=(spec,)), columns=["prompt", "solution"]).close()


def test_math_verify_compares_expressions():
    pytest.importorskip("math_verify")
    completions = [r"\boxed{1+x^2}", "$0.5$", "I think $x^2$", "nothing"]
    answers = ["x^2+1", r"\frac{1}{2}", "x^2+1", "3"]
    assert scored("math_verify", completions, answer=answers).totals == [1, 1, 0, 0]


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it():
    if importlib.util.find_spec("math_verify"):
        pytest.skip("math-verify is installed")
    with pytest.raises(UserError, match=r"math_verify: .*pip install 'lmpg\[math\]'"):
        Scorer(RewardSettings(functions=("math_verify",)))
