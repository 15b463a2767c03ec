"""Supervised and reward-model training from settings to results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmpg.cli import parse
from lmpg.config import OfflineLearningSettings, RewardModelSettings, SftSettings
from lmpg.data.preferences import PairSet, load_pairs, pairs_from_rows
from lmpg.data.texts import TextSet, load_texts, texts_from_rows
from lmpg.models.folders import save_folder
from lmpg.models.loading import (
    context_length,
    load_policy,
    load_sequence_classifier,
    load_tokenizer,
)
from lmpg.recipes import chosen_world, world_stage
from lmpg.recipes.world import OfflineWorld
from lmpg.sections import UserError
from lmpg.training.lifecycle import begin, carry_out
from lmpg.training.offline import Objective, Offline, OfflineUpdater
from lmpg.training.processes import Processes
from lmpg.training.reward_modelling import BradleyTerry
from lmpg.training.run_folder import RunFolder
from lmpg.training.supervised import NextToken
from lmpg.training.tracking import Tracker
from lmpg.values import Values, merged

Saved = tuple[Objective, Callable[[Path], None]]


@dataclass(frozen=True)
class Stage:
    """A kind of offline training: its settings, and what makes its objective of them."""

    settings: type[OfflineLearningSettings]
    prepare: Callable[[Any, OfflineWorld | None, Processes], Saved]


def train_stage(name: str, method: str, preset: Values, argv: Sequence[str] | None = None) -> None:
    """Run the stage `method`, in a built-in world or on the user's own parts.

    preset: settings that stand before the user's and after the world's; the run is called `name`.
    """
    stage = STAGES[method]

    def defaults(given: Values) -> Values:
        if given.get("model", {}).get("path") is not None:
            return preset
        return merged(world_stage(chosen_world(merged(preset, given)), method).preset, preset)

    settings = parse(stage.settings, argv, defaults)
    processes = Processes()
    processes.announce()
    folder = begin(settings, name, processes)
    if folder.status == "finished":
        return
    try:
        world = None
        if settings.model.path is None:
            build = world_stage(settings.data.world, method).build
            processes.on_main(lambda: build() and None)
            world = build()
        objective, save = stage.prepare(settings, world, processes)
        run = _assembled(settings, objective, save, folder, processes)
    except UserError:
        if processes.is_main:
            folder.abandon()
        raise
    carry_out(run, folder, name, {})


def _assembled(
    settings: OfflineLearningSettings,
    objective: Objective,
    save: Callable[[Path], None],
    folder: RunFolder,
    processes: Processes,
) -> Offline:
    updater = OfflineUpdater(objective, settings.update, processes, settings.run.total_steps)
    steps = updater.total_steps
    main = processes.is_main
    return Offline(
        source=objective,
        updater=updater,
        tracker=Tracker(folder.path, settings.run.trackers, steps, main_process=main),
        folder=folder.path,
        settings=settings.run,
        every=settings.evaluation.every,
        total_steps=steps,
        processes=processes,
        save_policy=save,
    )


def _supervised(settings: SftSettings, world: OfflineWorld | None, processes: Processes) -> Saved:
    model = settings.model
    if world is not None:
        model = model.model_copy(update={"path": str(world.model_path)})
    tokenizer = load_tokenizer(str(model.path), model.trust_remote_code)
    torch.manual_seed(settings.run.seed)  # LoRA's factors are drawn from the global generator
    policy = load_policy(model, tokenizer, critic=False, temperature=1.0, device=processes.device)
    if world is None:
        texts = load_texts(settings.data, tokenizer, policy.context_length)
    else:
        texts = TextSet(
            texts_from_rows(world.train_rows, tokenizer, policy.context_length),
            texts_from_rows(world.held_out_rows, tokenizer, policy.context_length),
        )
    _say(texts, processes)
    seed = settings.run.seed
    objective = NextToken(policy, texts.train, texts.held_out, seed, processes)
    return objective, lambda path: policy.save_pretrained(path, tokenizer)


def _reward_model(
    settings: RewardModelSettings, world: OfflineWorld | None, processes: Processes
) -> Saved:
    trust = settings.model.trust_remote_code
    path = str(settings.model.path if world is None else world.model_path)
    tokenizer = load_tokenizer(path, trust)
    torch.manual_seed(settings.run.seed)  # the new head is drawn from the global generator
    model: Any = load_sequence_classifier(path, new_head=True, trust_remote_code=trust)
    model.to(processes.device)
    context = min(context_length(model.config, tokenizer), tokenizer.model_max_length)
    if world is None:
        pairs = load_pairs(settings.data, tokenizer, context)
    else:
        pairs = PairSet(
            pairs_from_rows(world.train_rows, tokenizer, context),
            pairs_from_rows(world.held_out_rows, tokenizer, context),
        )
    _say(pairs, processes)
    bf16 = settings.model.precision == "bf16"
    objective = BradleyTerry(model, tokenizer, pairs, settings.run.seed, processes, bf16)

    return objective, lambda folder: save_folder(folder, model, tokenizer)


def _say(data: TextSet | PairSet, processes: Processes) -> None:
    if processes.is_main:
        print(data.line(), flush=True)


STAGES = {
    "sft": Stage(SftSettings, _supervised),
    "reward_model": Stage(RewardModelSettings, _reward_model),
}
