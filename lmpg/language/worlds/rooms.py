"""The rooms world: a corridor in text whose rooms look alike, and a model that sees no further back
than the present one, so that it has the optimum of `lmpg/Corridor-v0`: right with p = .586."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from lmpg.language.data.prompts import Prompt
from lmpg.language.data.rows import Row
from lmpg.language.worlds.talkers import WARM_START, talker, turns_preset
from lmpg.language.worlds.tasks import rooms_alike as task
from lmpg.language.worlds.world import World, WorldStage
from lmpg.settings.raw import merged

VERSION = 1
"""Of the code that makes the world: a new number makes everything in the cache again."""
SEED = 23
WALKS, HELD_OUT, TURNS = 1600, 100, 4
STARTS_RIGHT = 0.5
"""How often the warm start goes right."""
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # a layer sees a token and the one before it: of "room?", a line break and the "?"
    "sliding_window": 2,
}
SUPERVISED = WARM_START.model_copy(
    update={"learning_rate": 1e-2, "minibatch_size": 64, "microbatch_size": 64, "epochs": 8}
)
STAGES: dict[str, WorldStage] = {}


def preset(algorithm: type) -> dict[str, Any]:
    """Settings that suit the world, for an algorithm's class."""
    own = {
        "environment": {
            "path": "lmpg.language.worlds.tasks.rooms_alike:Rooms",
            "max_turns": 120,
            "max_tokens": 960,
        },
        "sampling": {"max_new_tokens": 2},
        "update": {
            "rollout_size": 128,
            "minibatch_size": 128,
            "learning_rate": 4e-4,
        },
        "evaluation": {"size": 64, "every": 0},
        "run": {"total_steps": 80},
    }
    fields = algorithm.model_fields  # type: ignore[attr-defined]
    # V sees one room, all alike, and costs of −12 are large beside what the policy learns from
    sampled = {"lam": 1.0, "value_coef": 1e-3}
    own["algorithm"] = {key: value for key, value in sampled.items() if key in fields}
    return merged(turns_preset(algorithm), own)


def build(start: Path | None = None, rewards: bool = True) -> World:
    """The world, from the cache where it has been made before."""
    rows = [{"prompt": task.LOOK}]
    return World(
        model_path=start or _started(),
        train_rows=rows,
        held_out_rows=rows,
        eval_metric=walked,
        facts={"best_right": task.BEST_RIGHT, "best_reward": task.value(task.BEST_RIGHT)},
    )


def walked(prompts: list[Prompt], completions: list[str]) -> dict[str, float]:
    """The share of "r" among all moves."""
    counts = [task.moves(x) for x in completions]
    right, left = (sum(c[x] for c in counts) for x in (task.RIGHT, task.LEFT))
    return {"right": right / max(right + left, 1)}


def _started() -> Path:
    return talker(
        "rooms",
        version=VERSION,
        seed=SEED,
        characters=task.CHARACTERS,
        shape=SHAPE,
        made_from=[WALKS, HELD_OUT, TURNS, STARTS_RIGHT],
        conversations=_walks,
        update=SUPERVISED,
    )


def _walks() -> tuple[list[Row], list[Row]]:
    rng = random.Random(SEED)
    count = WALKS + HELD_OUT
    walks = [{"text": task.walked(rng, TURNS, STARTS_RIGHT)} for _ in range(count)]
    return walks[HELD_OUT:], walks[:HELD_OUT]
