"""Training on a fixed set from settings to results, the same for every stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lmpg.language.data.data_files import data_inputs, rows_text
from lmpg.language.models.footprint.said import lines
from lmpg.language.models.model_files import model_files, start_files
from lmpg.language.rollouts.arithmetic import as_it_began, settle
from lmpg.language.stages import STAGES
from lmpg.language.stages.preference import dpo, kto
from lmpg.language.stages.prepared import Prepared, starting_model
from lmpg.language.stages.reward_modelling import reward_model
from lmpg.language.stages.settings import (
    DpoSettings,
    KtoSettings,
    OfflineLearningSettings,
    RewardModelSettings,
    SftSettings,
)
from lmpg.language.stages.sft import sft
from lmpg.language.stages.stage_memory import work_of
from lmpg.language.worlds.made_by_main import made_by_main
from lmpg.language.worlds.registry import world_asked_for, world_stage
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runs.fingerprints import Inputs
from lmpg.runs.folder import RunFolder
from lmpg.runs.tracking import Tracker
from lmpg.runtime.processes import Processes
from lmpg.runtime.room import room_of_each
from lmpg.runtime.spread import spread
from lmpg.training.given import NOTHING, Given, kept
from lmpg.training.offline import Offline, OfflineUpdater
from lmpg.training.run import begin, nothing_left_before_the_first_step, run

PREPARE: dict[type[OfflineLearningSettings], Callable[..., Prepared]] = {
    SftSettings: sft,
    RewardModelSettings: reward_model,
    DpoSettings: dpo,
    KtoSettings: kto,
}
"""The function that makes the objective of a stage, by the class of the stage's settings."""


def train_stage(
    settings: OfflineLearningSettings,
    name: str,
    world: OfflineWorld | None = None,
    given: Given = NOTHING,
) -> Path:
    """Train on a fixed set from settings to a finished run, which is called `name`; returns its
    folder.

    world: what to learn from, instead of the built-in world that the settings ask for. given:
    objects that the settings name.
    """
    processes = Processes()
    processes.announce()
    settings = processes.launch.obeyed_by(settings)
    folder = begin(settings, name, processes)
    if folder.status == "finished":
        return folder.path
    with nothing_left_before_the_first_step(folder, processes):
        settings = kept(given, settings, folder, processes)
        world = world or built(settings, processes)
        spread(processes, settings.run.sharding, settings.update.optimizer)
        asked, settings = settings.model.precision, as_it_began(settings, folder, processes)
        prepared = PREPARE[type(settings)](settings, world, processes)
        trained = getattr(prepared.objective.module, "causal_lm", prepared.objective.module)
        facts = settle(asked, settings.model, prepared.bf16, trained, folder, processes)
        if processes.is_main:
            said = lines(work_of(settings, prepared, processes), room_of_each(processes))
            print("\n".join([prepared.line, *said]), flush=True)
        loop = assembled(settings, prepared, folder, processes)
        loop.on_step = given.on_step
        scoring = isinstance(settings, RewardModelSettings)
        task = "text-classification" if scoring else "text-generation"
        run(loop, folder, name, facts, inputs_of(settings, world), task=task)
    return folder.path


def inputs_of(settings: OfflineLearningSettings, world: OfflineWorld | None) -> Inputs:
    """The files of the model and the data, or the world's rows."""
    models = start_files(starting_model(settings.model, world))
    if settings.model.reference:
        models["model.reference"] = model_files(settings.model.reference)
    if world is None:
        return {**data_inputs(settings.data), **models}
    rows = partial(rows_text, [*world.train_rows, *world.held_out_rows])
    return {"data.world": {"its rows": rows}, **models}


def built(settings: OfflineLearningSettings, processes: Processes) -> OfflineWorld | None:
    """The stage in the built-in world that the settings ask for, made by the main process."""
    name = world_asked_for(settings.model_dump())
    if name is None:
        return None
    stage = next(stage for stage, kind in STAGES.items() if type(settings) is kind)
    build = world_stage(name, stage).build
    if processes.is_main:
        print(f"built-in world: {name} (data.world)", flush=True)
    start = Path(settings.model.path) if settings.model.path else None
    return made_by_main(processes, lambda: build(start))


def assembled(
    settings: OfflineLearningSettings, prepared: Prepared, folder: RunFolder, processes: Processes
) -> Offline:
    """The loop over the prepared objective, with its optimizer and its tracker."""
    objective = prepared.objective
    updater: OfflineUpdater = OfflineUpdater(
        objective, settings.update, processes, settings.run.total_steps
    )
    steps = updater.total_steps
    main = processes.is_main
    return Offline(
        source=objective,
        updater=updater,
        tracker=Tracker(folder.path, steps, main_process=main),
        folder=folder.path,
        settings=settings.run,
        every=settings.evaluation.every,
        total_steps=steps,
        processes=processes,
        save_policy=prepared.save,
    )
