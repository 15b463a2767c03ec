from __future__ import annotations

import random
import subprocess
import sys

from lmpg.language.worlds.tasks import sums


def numbers(row):
    a, b = row["prompt"].rstrip("=").split("+")
    return int(a), int(b)


def test_parts_have_their_sizes_and_every_answer_is_right():
    held_out, checked, train = sums.parts([101, 64], random.Random(0))
    assert (len(held_out), len(checked)) == (101, 64)
    rows = [*held_out, *checked, *train]
    assert 8098 <= len({row["prompt"] for row in rows}) == len(rows) <= 8100
    assert all(sum(numbers(row)) == int(row["answer"]) for row in rows)
    assert set("".join(row["prompt"] + row["answer"] for row in rows)) == set(sums.CHARACTERS)


def test_no_problem_nor_its_twin_with_the_numbers_swapped_is_in_two_parts():
    for seed in range(5):
        parts = sums.parts([101, 64], random.Random(seed))
        pairs = [{tuple(sorted(numbers(row))) for row in part} for part in parts]
        assert sum(map(len, pairs)) == len(set.union(*pairs)) == 4095


def test_parts_depend_on_the_seed_alone():
    first, again, other = (sums.parts([50], random.Random(seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_only_the_answer_and_nothing_else_is_right():
    completions = ["95", "96", "095", "95 ", "", "9"]
    assert sums.exact_match(completions, ["95"] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_tasks_need_no_torch():
    code = (
        "import sys, lmpg.language.worlds.tasks.sums, lmpg.language.worlds.tasks.review_texts;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
