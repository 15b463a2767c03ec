"""The models of the worlds with turns: character models, warm-started on whole conversations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmpg.language.data.rows import Row
from lmpg.language.worlds.cache import cached
from lmpg.training.settings import OfflineSettings

# What brings transformers along is imported where it is used: the settings need not wait for it.

WARM_START = OfflineSettings(
    learning_rate=3e-3,
    schedule="linear",
    warmup_steps=10,
    adam_eps=1e-5,
    minibatch_size=32,
    microbatch_size=32,
    epochs=3,
)
"""How it learns, unless a world has its own."""


def talker(
    world: str,
    *,
    version: int,
    seed: int,
    characters: str,
    shape: dict[str, Any],
    made_from: Any,
    conversations: Callable[[], tuple[list[Row], list[Row]]],
    update: OfflineSettings = WARM_START,
) -> Path:
    """The folder of a world's model, from the cache where it has been made before.

    shape: fields of its config; one with a `sliding_window` is a Mistral, else it is a Llama.
    made_from: all that the conversations depend on, as JSON.
    conversations: (train, held-out) rows that its warm start learns, texts with `<eos>` behind
    every turn but the last; of what the other side says it learns as much as can be foreseen.
    """
    settings = {
        "version": version,
        "seed": seed,
        "characters": characters,
        "shape": shape,
        "conversations": made_from,
        "update": update.model_dump(),
    }

    def make(folder: Path) -> None:
        from transformers import LlamaConfig, MistralConfig

        from lmpg.language.worlds.making import blank_model, warm_start
        from lmpg.language.worlds.tokenizers import character_tokenizer

        family = MistralConfig if "sliding_window" in shape else LlamaConfig
        with TemporaryDirectory() as place:
            blank, rows = Path(place), conversations()
            blank_model(blank, character_tokenizer(characters), shape, seed, family)
            warm_start(folder, blank, rows, update, seed, f"{world}: warm start")

    return cached(f"{world}-model", settings, make)


def turns_preset(algorithm: type) -> dict[str, Any]:
    """Settings that suit these worlds, for an algorithm's class: no KL to a warm start that is to
    be left behind, and a critic that learns fast, as all turns of an episode cost alike and only
    its values tell a good one."""
    needs = algorithm().needs  # type: ignore[attr-defined]
    fields = algorithm.model_fields  # type: ignore[attr-defined]
    wanted: dict[str, Any] = {"kl_coef": 0.0, "value_clip": None}
    found: dict[str, Any] = {
        "algorithm": {key: value for key, value in wanted.items() if key in fields},
        "update": {
            "rollout_size": 256,
            # a gradient without ratios is right for the policy that sampled, so one step for each
            "minibatch_size": 64 if "ratios" in needs else 256,
            "microbatch_size": 64,
            "epochs": 1,
            "learning_rate": 1e-3,
            "schedule": "linear",
        },
    }
    if "critic" in needs:
        found["update"]["critic_learning_rate"] = 1e-2
    return found
