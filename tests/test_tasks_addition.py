from __future__ import annotations

import random
import subprocess
import sys

from lmpg.tasks import addition


def test_every_problem_appears_once_with_its_right_answer():
    rows = addition.problems(random.Random(0))
    assert len({row["prompt"] for row in rows}) == len(rows) == 8100
    for row in rows:
        a, b = row["prompt"].rstrip("=").split("+")
        assert int(a) + int(b) == int(row["answer"])
    assert set("".join(row["prompt"] + row["answer"] for row in rows)) == set(addition.CHARACTERS)


def test_only_the_answer_and_nothing_else_is_right():
    completions = ["95", "96", "095", "95 ", "", "9"]
    assert addition.exact_match(completions, ["95"] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_tasks_need_no_torch():
    code = (
        "import sys, lmpg.tasks.addition, lmpg.tasks.reviews;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
