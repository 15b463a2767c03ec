"""An environment and tools as objects of Python, through a whole run and its resumption."""

from __future__ import annotations

import json

import pytest

import lmpg
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import save_tiny

UPDATE = {"rollout_size": 4, "minibatch_size": 4, "microbatch_size": 4}


class Echo:
    """Says again what was said, and pays for letters a; a letter b breaks it."""

    def reset(self, *, seed, options):
        self.said = 0
        return f"{options['prompt']}> ", {}

    def step(self, action):
        self.said += 1
        if "b" in action:
            raise RuntimeError("it broke")
        return f"\n{action[:3]}> ", float(action.count("a")), self.said == 2, False, {}


def train(folder, environment, **run):
    rows = [{"prompt": "say a" if i % 2 else "say"} for i in range(8)]
    return lmpg.train(
        "reinforce",
        model=save_tiny(folder / "model"),
        data=rows,
        environment=environment,
        rewards={"max_error_share": 1.0},
        sampling={"max_new_tokens": 5},
        update=UPDATE,
        evaluation={"size": 1},
        run={"total_steps": 1, "samples_every": 1, "output_dir": str(folder / "run"), **run},
    )


@pytest.mark.slow
@catches("a class of Python that is changed between a run and its resumption")
def test_a_class_of_python_is_learned_in_and_must_be_the_same_when_the_run_is_resumed(tmp_path):
    class Here(Echo):
        limit = 2

    run = train(tmp_path, Here)
    rows = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert run.settings["environment"]["path"] == "memory:Here"
    for row in rows:
        broken = [turn for turn in row["turns"] if "b" in turn["text"]]
        assert (row["score"] is None) == bool(broken)
        if not broken:
            assert [x["reward"] for x in row["turns"]] == [
                x["text"].count("a") for x in row["turns"]
            ]
    assert run.metrics[-1]["reward_errors"] == sum(row["score"] is None for row in rows)

    class Here(Echo):
        def close(self):
            self.said = 0

    with pytest.raises(UserError, match=r"environment\.path: memory:Here has changed since"):
        train(tmp_path, Here, total_steps=2, resume=True)
