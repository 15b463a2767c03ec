"""The addition world: two-digit sums, a character model that half knows them, exact match."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lmpg.data.prompts import Prompt
from lmpg.data.rows import Row
from lmpg.models.policy import CausalLMPolicy
from lmpg.recipes.cache import cached
from lmpg.recipes.stages import blank_model, read_facts, warm_start
from lmpg.recipes.tokenizers import character_tokenizer
from lmpg.recipes.world import World, WorldStage
from lmpg.sampling.sampler import Sampler
from lmpg.tasks import addition as task
from lmpg.training.seeding import generator
from lmpg.training.settings import OfflineSettings

VERSION = 2
"""Of the code that the stages depend on: a new number makes them all again."""
SEED = 11
HELD_OUT, CHECKED = 512, 512
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 16,
}
NEW_TOKENS = 4
SUPERVISED = OfflineSettings(
    learning_rate=3e-3, warmup_steps=10, minibatch_size=64, microbatch_size=64, epochs=20
)
ENOUGH = 0.4
"""The warm start ends when this share of sampled answers is right."""
CHECK_EVERY = 10


def preset(algorithm: type) -> dict[str, Any]:
    """Settings that suit the world, whatever the algorithm."""
    return {
        "sampling": {"max_new_tokens": NEW_TOKENS},
        "update": {
            "rollout_size": 512,
            "minibatch_size": 128,
            "microbatch_size": 128,
            "epochs": 1,
            "learning_rate": 5e-4,
            "schedule": "linear",
        },
        "evaluation": {"size": HELD_OUT, "every": 50},
        "run": {"total_steps": 300},
    }


def build() -> World:
    """The world, from the cache where it has been made before."""
    start = _started()
    return World(
        model_path=start,
        train_rows=_problems()["train"],
        held_out_rows=_problems()["held out"],
        judge=accuracy,
        reward_functions=("lmpg.tasks.addition:exact_match",),
        facts={"warm_start": read_facts(start)},
    )


def accuracy(prompts: list[Prompt], completions: list[str]) -> dict[str, float]:
    """Share of the completions that are the right answer."""
    answers = [prompt.columns["answer"] for prompt in prompts]
    right = task.exact_match(completions, answers)
    return {"accuracy": sum(right) / len(right)}


def _blank() -> Path:
    def make(folder: Path) -> None:
        blank_model(folder, character_tokenizer(task.CHARACTERS), SHAPE, SEED)

    return cached("addition-blank", {"version": VERSION, "seed": SEED, "shape": SHAPE}, make)


def _started() -> Path:
    blank = _blank()

    def make(folder: Path) -> None:
        rows = _as_texts("train"), _as_texts("checked")
        warm_start(folder, blank, rows, SUPERVISED, SEED, "addition: warm start", _knows_enough)

    settings = {
        "from": blank.name,
        "held out": [HELD_OUT, CHECKED],
        "enough": [ENOUGH, CHECK_EVERY],
        "update": SUPERVISED.model_dump(),
    }
    return cached("addition-model", settings, make)


@cache
def _problems() -> dict[str, list[Row]]:
    """Three parts without a common problem: to train on, to stop the warm start by, held out."""
    held_out, checked, train = task.parts([HELD_OUT, CHECKED], random.Random(SEED))
    return {"held out": held_out, "checked": checked, "train": train}


def _as_texts(part: str) -> list[Row]:
    rows = _problems()[part]
    return [{"prompt": row["prompt"], "completion": row["answer"]} for row in rows]


def _knows_enough(policy: CausalLMPolicy, tokenizer: Any, step: int) -> bool:
    """Whether enough sampled answers to problems that it was not trained on are right."""
    if step % CHECK_EVERY:
        return False
    rows = _problems()["checked"]
    uniforms = torch.rand((len(rows), NEW_TOKENS), generator=generator(SEED, "check", step))
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    samples = Sampler(policy, NEW_TOKENS).sample(prompts, 1, uniforms)
    lengths = samples.inputs["response_lengths"].tolist()
    ids = [r[:n] for r, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    right = task.exact_match(texts, [row["answer"] for row in rows])
    return sum(right) / len(right) >= ENOUGH


STAGES: dict[str, WorldStage] = {}
