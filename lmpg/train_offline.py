"""Supervised and reward-model training from settings to results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lmpg.cli import parse
from lmpg.config import OfflineLearningSettings, RewardModelSettings, SftSettings, Values
from lmpg.data.preferences import PairSet, load_pairs, pairs_from_rows
from lmpg.data.texts import TextSet, load_texts, texts_from_rows
from lmpg.models.folders import save_folder
from lmpg.models.loading import (
    context_length,
    load_policy,
    load_sequence_classifier,
    load_tokenizer,
)
from lmpg.recipes.world import OfflineWorld
from lmpg.sections import UserError
from lmpg.training.lifecycle import begin, carry_out
from lmpg.training.offline import Objective, Offline, OfflineUpdater
from lmpg.training.processes import Processes
from lmpg.training.reward_modelling import BradleyTerry
from lmpg.training.run_folder import RunFolder
from lmpg.training.settings import OfflineSettings
from lmpg.training.supervised import NextToken
from lmpg.training.tracking import Tracker

Build = Callable[[], OfflineWorld]
Saved = tuple[Objective, Callable[[Path], None]]


def train_sft(build: Build, update: OfflineSettings, argv: Sequence[str] | None = None) -> None:
    """Supervised fine-tuning, in a world's stage (with its `update`) or on the user's own parts."""
    _train(SftSettings, "sft", _supervised, build, update, argv)


def train_reward_model(
    build: Build, update: OfflineSettings, argv: Sequence[str] | None = None
) -> None:
    """A reward model, in a world's stage (with its `update`) or on the user's own parts."""
    _train(RewardModelSettings, "reward_model", _reward_model, build, update, argv)


def _train(
    kind: type[OfflineLearningSettings],
    name: str,
    prepare: Callable[..., Saved],
    build: Build,
    update: OfflineSettings,
    argv: Sequence[str] | None,
) -> None:
    def preset(given: Values) -> Values:
        own = given.get("model", {}).get("path") is not None
        return {} if own else {"update": update.model_dump()}

    settings = parse(kind, argv, preset)
    processes = Processes()
    processes.announce()
    folder = begin(settings, name, processes)
    if folder.status == "finished":
        return
    try:
        world = None
        if settings.model.path is None:
            processes.on_main(lambda: build() and None)
            world = build()
        objective, save = prepare(settings, world, processes)
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
