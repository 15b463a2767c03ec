"""The guess world: a number from 1 to 15, "higher" or "lower", a model that knows the rules and
plays carelessly. The best play, binary search, takes 49/15 guesses on average."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from lmpg.language.data.prompts import Prompt
from lmpg.language.data.rows import Row
from lmpg.language.worlds.talkers import talker, turns_preset
from lmpg.language.worlds.tasks import guessing as task
from lmpg.language.worlds.world import World, WorldStage
from lmpg.settings.raw import merged

VERSION = 1
"""Of the code that makes the world: a new number makes everything in the cache again."""
SEED = 17
GAMES, HELD_OUT = 12000, 200
CARELESS = 0.15
"""How often the warm start's teacher draws a guess from all numbers."""
MAX_TURNS = 12
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 192,
}
STAGES: dict[str, WorldStage] = {}


def preset(algorithm: type) -> dict[str, Any]:
    """Settings that suit the world, for an algorithm's class."""
    own = {
        "environment": {
            "path": "lmpg.language.worlds.tasks.guessing:Guess",
            "max_turns": MAX_TURNS,
            "max_tokens": 144,
        },
        "sampling": {"max_new_tokens": 3},
        "evaluation": {"size": 20 * task.MOST, "every": 20},
        "run": {"total_steps": 100},
    }
    return merged(turns_preset(algorithm), own)


def build(start: Path | None = None, rewards: bool = True) -> World:
    """The world, from the cache where it has been made before."""
    rows = [
        {"prompt": task.opening(), "number": n, "most": task.MOST} for n in range(1, task.MOST + 1)
    ]
    return World(
        model_path=start or _started(),
        train_rows=rows,
        held_out_rows=rows,
        eval_metric=guesses,
        facts={"best_guesses": task.best_mean()},
    )


def guesses(prompts: list[Prompt], completions: list[str]) -> dict[str, float]:
    """Mean guesses of a game, and how many of them the best play takes."""
    mean = sum(map(task.guesses, completions)) / len(completions)
    return {"guesses": mean, "guesses_over_best": mean / task.best_mean()}


def _started() -> Path:
    return talker(
        "guess",
        version=VERSION,
        seed=SEED,
        characters=task.CHARACTERS,
        shape=SHAPE,
        made_from=[GAMES, HELD_OUT, CARELESS, MAX_TURNS],
        conversations=_games,
    )


def _games() -> tuple[list[Row], list[Row]]:
    rng = random.Random(SEED)
    games = [task.played(rng, CARELESS) for _ in range(GAMES + HELD_OUT)]
    fit = [{"text": game} for game in games if game.count("<eos>") < MAX_TURNS]
    return fit[HELD_OUT:], fit[:HELD_OUT]
