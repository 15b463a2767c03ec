"""Reward models: a causal language model gets a new head and learns to score texts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmpg.language.data.examples import Split, data_rows
from lmpg.language.data.reward_pairs import load_reward_pairs, reward_pairs_from_rows
from lmpg.language.data.tokenizing import reading_tokenizer
from lmpg.language.models.forward.kept_weights import exact_dtype, saved_dtype
from lmpg.language.models.forward.recompute import recompute_layers
from lmpg.language.models.loading import (
    context_length,
    load_sequence_classifier,
    tokenizer_of,
)
from lmpg.language.models.precision import allow_tf32, computes_in_bf16, num_weights, save_folder
from lmpg.language.models.settings import ModelSettings
from lmpg.language.models.start.shared_out import loaded
from lmpg.language.models.start.vocabulary import refuse_smaller_vocabulary
from lmpg.language.objectives.reward_model_objective import RewardModelObjective
from lmpg.language.stages.prepared import Prepared, starting_model
from lmpg.language.stages.settings import RewardModelSettings
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runtime.processes import Processes
from lmpg.runtime.sharding import whole_copy


def reward_model(
    settings: RewardModelSettings, world: OfflineWorld | None, processes: Processes
) -> Prepared:
    """The chosen text is to score above the rejected one."""
    data = () if world else data_rows(settings.data)
    start = starting_model(settings.model, world)
    tokenizer = reading_tokenizer(tokenizer_of(start), settings.data)
    torch.manual_seed(settings.run.seed)  # the new head is drawn from the global generator
    model: Any = loaded(partial(_new_scorer, start, tokenizer, processes.device), processes)
    trunk = model.base_model
    saved_in = saved_dtype(settings.model.final_dtype, exact_dtype(trunk), trunk)
    if settings.model.gradient_checkpointing:
        recompute_layers(model.base_model)
    processes.suit_threads(num_weights(model))
    context = min(context_length(model.config, tokenizer), tokenizer.model_max_length)
    if world is None:
        pairs = load_reward_pairs(settings.data, tokenizer, context, data)
    else:
        rows = (world.train_rows, world.held_out_rows)
        train, held_out = (reward_pairs_from_rows(part, tokenizer, context) for part in rows)
        pairs = Split(train, held_out)
    allow_tf32(model, settings.model.tf32)
    bf16 = computes_in_bf16(settings.model.precision, model, processes.device)
    examples, seed = (pairs.train, pairs.held_out), settings.run.seed
    objective = RewardModelObjective(
        model, tokenizer, settings.algorithm, examples, seed, processes, bf16
    )

    def save(folder: Path) -> None:
        with whole_copy(model) as whole:
            save_folder(folder, whole, tokenizer, saved_in)

    return Prepared(objective, save, pairs.line())


def _new_scorer(start: ModelSettings, tokenizer: Any, device: torch.device, *, moved: bool) -> Any:
    """The model with its new head; on `device`, unless not `moved`."""
    model = load_sequence_classifier(
        str(start.path),
        new_head=True,
        trust_remote_code=start.trust_remote_code,
        revision=start.revision,
    )
    refuse_smaller_vocabulary("model.path", start.path, model, tokenizer)
    return model.to(device) if moved else model
