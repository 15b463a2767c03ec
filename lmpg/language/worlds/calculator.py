"""The calculator world: sums of three digits, a model that cannot do them, and a tool that adds."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from lmpg.language.data.prompts import Prompt
from lmpg.language.data.rows import Row
from lmpg.language.worlds.talkers import talker, turns_preset
from lmpg.language.worlds.tasks import tool_sums as task
from lmpg.language.worlds.world import World, WorldStage
from lmpg.settings.raw import merged

VERSION = 1
"""Of the code that makes the world: a new number makes everything in the cache again."""
SEED = 19
HELD_OUT, CHECKED, TRAINED = 512, 256, 12000
CALLS = 0.5
"""How often the warm start's teacher asks the tool; else it writes the right answer at once, of
which a model this small learns the form, not the sum."""
MAX_TURNS = 4
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
STAGES: dict[str, WorldStage] = {}


def preset(algorithm: type) -> dict[str, Any]:
    """Settings that suit the world, for an algorithm's class."""
    own = {
        "environment": {
            "path": "lmpg.language.worlds.tasks.tool_sums:Calculator",
            "max_turns": MAX_TURNS,
            "max_tokens": 104,
        },
        "sampling": {"max_new_tokens": 20},
        "update": {"learning_rate": 4e-4},  # larger ones can unlearn to copy, and all is 0
        "evaluation": {"size": 256, "every": 10},
        "run": {"total_steps": 40},
    }
    return merged(turns_preset(algorithm), own)


def build(start: Path | None = None, rewards: bool = True) -> World:
    """The world, from the cache where it has been made before."""
    return World(
        model_path=start or _started(),
        train_rows=_problems()["train"],
        held_out_rows=_problems()["held out"],
        eval_metric=tool_use,
    )


def tool_use(prompts: list[Prompt], completions: list[str]) -> dict[str, float]:
    """Shares of the conversations: that asked the tool, whose answer is right, and of those
    without the tool whose answer is right."""
    answers = [str(prompt.columns["answer"]) for prompt in prompts]
    right = [task.answered(x) == answer for x, answer in zip(completions, answers)]
    called = [task.called(x) for x in completions]
    alone = [r for r, c in zip(right, called) if not c]
    found = {"tool_used": sum(called) / len(called), "accuracy": sum(right) / len(right)}
    return found | ({"accuracy_alone": sum(alone) / len(alone)} if alone else {})


def _started() -> Path:
    return talker(
        "calculator",
        version=VERSION,
        seed=SEED,
        characters=task.CHARACTERS,
        shape=SHAPE,
        made_from=[CHECKED, TRAINED, CALLS, task.DIGITS],
        conversations=_conversations,
    )


@cache
def _problems() -> dict[str, list[Row]]:
    """Three parts that share no sum: `train`, `checked` (for the warm start) and `held out`."""
    held_out, checked, train = task.parts([HELD_OUT, CHECKED, TRAINED], random.Random(SEED))
    return {"held out": held_out, "checked": checked, "train": train}


def _conversations() -> tuple[list[Row], list[Row]]:
    rng, problems = random.Random(SEED + 1), _problems()
    parts = [
        [
            {"prompt": row["prompt"], "completion": task.worked(row, rng.random() < CALLS)}
            for row in problems[part]
        ]
        for part in ("train", "checked")
    ]
    return parts[0], parts[1]
