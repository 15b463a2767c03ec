"""The reviews world: a small language model that writes reviews, and raters who like good moods.

A grammar makes everything: the tokenizer, reviews in both moods for the warm start, and the raters'
preferences for the reward model. Training asks for reviews that go on from given openings. The gold
scorer is for evaluation alone, training never sees it.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from lmpg.language.data.prompts import EvalMetric, Prompt
from lmpg.language.data.rows import Row
from lmpg.language.worlds.cache import cached, read_facts
from lmpg.language.worlds.tasks import review_texts as task
from lmpg.language.worlds.world import OfflineWorld, World, WorldStage
from lmpg.training.settings import OfflineSettings

# What brings transformers along is imported where it is used: the settings need not wait for it.

VERSION = 1
"""Of the code that makes the world: a new number makes everything in the cache again."""
SEED = 7
HELD_OUT, OPENINGS = 256, 1216
TEXTS, PAIRS = 9600, 3072
VOCABULARY = 768
NEW_TOKENS = 48
SHAPE = {
    "hidden_size": 224,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 14,
    "num_key_value_heads": 14,
    "max_position_embeddings": 96,
    "initializer_range": 0.05,
}
RATER_ERRORS = 0.03
GARBLED = 0.25
SUPERVISED = OfflineSettings(
    learning_rate=2e-3,
    schedule="linear",
    warmup_steps=10,
    adam_eps=1e-5,
    minibatch_size=8,
    microbatch_size=8,
)
PREFERENCES = OfflineSettings(
    learning_rate=5e-4,
    schedule="linear",
    warmup_steps=10,
    adam_eps=1e-5,
    minibatch_size=16,
    microbatch_size=16,
)


def preset(algorithm: type) -> dict[str, Any]:
    """Settings that suit the world, for an algorithm's class."""
    fields = algorithm.model_fields  # type: ignore[attr-defined]
    ratios = "ratios" in algorithm().needs
    found: dict[str, Any] = {
        "sampling": {"max_new_tokens": NEW_TOKENS},
        "algorithm": {},
        "update": {
            "rollout_size": 64,
            "minibatch_size": 32,
            # a gradient without ratios is right for the policy that sampled, so once is enough
            "epochs": 4 if ratios else 1,
            "learning_rate": 3e-4,
            "warmup_steps": 5,
        },
        "evaluation": {"every": 10},
        "run": {"total_steps": 50},
    }
    if "kl_coef" in fields:
        found["algorithm"]["kl_coef"] = 0.3 if fields["kl_in"].default == "reward" else 0.2
    if "value_coef" in fields:
        found["algorithm"]["value_coef"] = 0.5
    return found


def build(start: Path | None = None, rewards: bool = True) -> World:
    """The world, from the cache where it has been made before."""
    reward_model = _reward_model() if rewards else None
    train, held_out = _openings()
    return World(
        model_path=start or _started(),
        train_rows=[{"prompt": opening} for opening in train],
        held_out_rows=[{"prompt": opening} for opening in held_out],
        eval_metric=gold,
        reward_models=(str(reward_model),) if reward_model else (),
        facts=_reward_model_facts(reward_model) if reward_model else {},
    )


def _reward_model_facts(folder: Path) -> dict[str, float]:
    return {"reward_model_pair_accuracy": read_facts(folder)["pair_accuracy"]}


def gold(prompts: list[Prompt], completions: list[str]) -> dict[str, float]:
    """Shares: gold_positive, gold_grammatical, gold (both at once); never shown to training."""
    return task.gold([str(prompt.prompt) for prompt in prompts], completions)


def supervised(start: Path | None = None) -> OfflineWorld:
    """What the warm start is trained from: a blank model and reviews."""
    return OfflineWorld(start or _blank(), *_texts(), *_evaluation())


def preferences(start: Path | None = None) -> OfflineWorld:
    """What a reward model, DPO and KTO are trained from: the warm start and raters' preferences."""
    return OfflineWorld(start or _started(), *_preferences(), *_evaluation())


def _evaluation() -> tuple[list[Row], EvalMetric]:
    return [{"prompt": opening} for opening in _openings()[1]], gold


def _blank() -> Path:
    from lmpg.language.worlds.making import blank_model
    from lmpg.language.worlds.tokenizers import byte_pair_tokenizer

    def make(folder: Path) -> None:
        train, _ = _texts()
        texts = [row["prompt"] + row["completion"] for row in train]
        blank_model(folder, byte_pair_tokenizer(texts, VOCABULARY), SHAPE, SEED)

    settings = {"version": VERSION, "seed": SEED, "texts": TEXTS, "openings": OPENINGS}
    return cached("reviews-blank", {**settings, "vocabulary": VOCABULARY, "shape": SHAPE}, make)


def _started() -> Path:
    from lmpg.language.worlds.making import warm_start

    blank = _blank()

    def make(folder: Path) -> None:
        warm_start(folder, blank, _texts(), SUPERVISED, SEED, "reviews: warm start")

    settings = {"from": blank.name, "update": SUPERVISED.model_dump()}
    return cached("reviews-model", settings, make)


def _reward_model() -> Path:
    from lmpg.language.worlds.making import trained_reward_model

    start = _started()

    def make(folder: Path) -> None:
        trained_reward_model(
            folder, start, _preferences(), PREFERENCES, SEED, "reviews: reward model"
        )

    settings = {
        "from": start.name,
        "pairs": PAIRS,
        "errors": RATER_ERRORS,
        "garbled": GARBLED,
        "update": PREFERENCES.model_dump(),
    }
    return cached("reviews-reward", settings, make)


@cache
def _openings() -> tuple[list[str], list[str]]:
    """(train, held out): no opening is in both."""
    drawn = task.openings(OPENINGS, random.Random(SEED))
    return drawn[HELD_OUT:], drawn[:HELD_OUT]


@cache
def _texts() -> tuple[list[Row], list[Row]]:
    """Reviews in both moods, of (train, held-out) openings."""
    rng = random.Random(SEED + 1)
    train, held_out = _openings()
    drawn = [rng.choice(train) for _ in range(TEXTS)]
    parts = ([task.mixed_review(opening, rng) for opening in part] for part in (drawn, held_out))
    found = [[{"prompt": r.opening, "completion": r.response} for r in part] for part in parts]
    return found[0], found[1]


@cache
def _preferences() -> tuple[list[Row], list[Row]]:
    """Raters' choices between two reviews of (train, held-out) openings."""
    rng = random.Random(SEED + 2)
    train, held_out = _openings()
    drawn = [rng.choice(train) for _ in range(PAIRS)]
    parts = [
        [task.preference(opening, rng, RATER_ERRORS, GARBLED) for opening in part]
        for part in (drawn, held_out)
    ]
    return parts[0], parts[1]


SAMPLED = {"size": HELD_OUT, "max_new_tokens": NEW_TOKENS}
DIRECT = OfflineSettings(
    learning_rate=3e-4,
    schedule="linear",
    warmup_steps=10,
    adam_eps=1e-5,
    minibatch_size=32,
    microbatch_size=32,
)
STAGES = {
    "sft": WorldStage({"update": SUPERVISED.model_dump(), "evaluation": SAMPLED}, supervised),
    "reward_model": WorldStage({"update": PREFERENCES.model_dump()}, preferences),
    "dpo": WorldStage({"update": DIRECT.model_dump(), "evaluation": SAMPLED}, preferences),
    "kto": WorldStage({"update": DIRECT.model_dump(), "evaluation": SAMPLED}, preferences),
}
