"""Makes the models of the built-in worlds: a blank one, its warm start, its reward model.

Each is made on the CPU in one process, from a seed of its own, and prints its progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
from lmpg.language.data.reward_pairs import reward_pairs_from_rows
from lmpg.language.data.rows import Row
from lmpg.language.data.texts import texts_from_rows
from lmpg.language.models.loading import (
    context_length,
    load_policy,
    load_sequence_classifier,
    load_tokenizer,
)
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import save_folder
from lmpg.language.models.settings import ModelSettings
from lmpg.language.objectives.reward_model_objective import RewardModelObjective
from lmpg.language.objectives.sft_objective import SFTObjective
from lmpg.language.worlds.cache import write_facts
from lmpg.runtime.processes import SingleProcess
from lmpg.runtime.progress import time_left
from lmpg.training.offline import OfflineUpdater
from lmpg.training.settings import OfflineSettings

SECONDS_BETWEEN_LINES = 2.0
Stop = Callable[[CausalLMPolicy, Any, int], bool]


def blank_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    shape: dict[str, Any],
    seed: int,
    family: Callable[..., PretrainedConfig] = LlamaConfig,
) -> None:
    """A random model (a Llama, or of another family's config) with tied embeddings and the
    tokenizer's vocabulary, saved in `folder`."""
    config = family(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    save_folder(folder, model, tokenizer)


def warm_start(
    folder: Path,
    blank: Path,
    rows: tuple[list[Row], list[Row]],
    settings: OfflineSettings,
    seed: int,
    name: str,
    stop: Stop | None = None,
) -> None:
    """Saves in `folder` the model of `blank` after supervised training on (train, held-out) rows.

    stop: called after every step with policy, tokenizer and step; True ends the training.
    """
    tokenizer = load_tokenizer(str(blank))
    model = ModelSettings(path=str(blank), precision="fp32")
    policy = load_policy(model, tokenizer, critic=False, temperature=1.0)
    train, held_out = (texts_from_rows(part, tokenizer, policy.context_length) for part in rows)
    objective = SFTObjective(policy, MaximumLikelihood(), (train, held_out), seed, SingleProcess())
    updater: OfflineUpdater = OfflineUpdater(objective, settings, SingleProcess())
    _learn(updater, name, stop and (lambda step: stop(policy, tokenizer, step)))
    policy.save_pretrained(folder, tokenizer)
    write_facts(folder, objective.evaluate())


def trained_reward_model(
    folder: Path,
    start: Path,
    rows: tuple[list[Row], list[Row]],
    settings: OfflineSettings,
    seed: int,
    name: str,
) -> None:
    """Saves in `folder` a reward model that starts from the causal LM `start`, trained on (train,
    held-out) preference rows."""
    tokenizer = load_tokenizer(str(start))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = load_sequence_classifier(str(start), new_head=True)
    context = context_length(model.config, tokenizer)
    train, held_out = (reward_pairs_from_rows(part, tokenizer, context) for part in rows)
    algorithm, examples = BradleyTerry(), (train, held_out)
    objective = RewardModelObjective(model, tokenizer, algorithm, examples, seed, SingleProcess())
    _learn(OfflineUpdater(objective, settings, SingleProcess()), name)
    save_folder(folder, model, tokenizer)
    write_facts(folder, objective.evaluate())


def _learn(updater: OfflineUpdater, name: str, stop: Callable[[int], bool] | None = None) -> None:
    started = said = time.monotonic()
    for step in range(1, updater.total_steps + 1):
        metrics = updater.update(step)
        done = step == updater.total_steps or bool(stop and stop(step))
        now = time.monotonic()
        if done or step == 1 or now - said > SECONDS_BETWEEN_LINES:
            said = now
            shown = " | ".join(
                f"{label} {metrics[label]:.3f}"
                for label in ("loss", "pair_accuracy")
                if label in metrics
            )
            left = time_left(now - started, step, updater.total_steps)
            print(f"{name} | step {step}/{updater.total_steps} | {shown} | {left}", flush=True)
        if done:
            return
