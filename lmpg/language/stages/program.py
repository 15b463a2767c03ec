"""Training from a fixed set, any stage, from settings to results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmpg.cli.flags import parse
from lmpg.language.stages import STAGES
from lmpg.language.stages.prepared import Prepared
from lmpg.language.stages.settings import OfflineLearningSettings
from lmpg.language.worlds import world_asked_for, world_stage
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runs.folder import RunFolder
from lmpg.runs.tracking import Tracker
from lmpg.runtime.processes import Processes
from lmpg.settings.raw import Values, merged
from lmpg.training.offline import Offline, OfflineUpdater
from lmpg.training.run import begin, refusals_leave_nothing, run


def train_stage(name: str, method: str, preset: Values, argv: Sequence[str] | None = None) -> None:
    """Run the stage `method`, in a built-in world or on the user's own parts.

    preset: settings that stand before the user's and after the world's; the run is called `name`.
    """
    stage = STAGES[method]
    settings = stage_settings(method, preset, argv)
    processes = Processes()
    processes.announce()
    folder = begin(settings, name, processes)
    if folder.status == "finished":
        return
    with refusals_leave_nothing(folder, processes):
        world = _world(settings, method, processes)
        prepared = stage.prepare(settings, world, processes)
        if processes.is_main:
            print(prepared.line, flush=True)
        loop = _assembled(settings, prepared, folder, processes)
    run(loop, folder, name, {})


def stage_settings(
    method: str, preset: Values, argv: Sequence[str] | None
) -> OfflineLearningSettings:
    """The settings of a stage, with what suits the world below the preset."""

    def defaults(given: Values) -> Values:
        world = world_asked_for(merged(preset, given))
        return preset if world is None else merged(world_stage(world, method).preset, preset)

    return parse(STAGES[method].settings, argv, defaults)


def _world(
    settings: OfflineLearningSettings, method: str, processes: Processes
) -> OfflineWorld | None:
    """The stage in the built-in world that the settings ask for, made by the main process."""
    name = world_asked_for(settings.model_dump())
    if name is None:
        return None
    build = world_stage(name, method).build
    if processes.is_main:
        print(f"built-in world: {name} (data.world)", flush=True)
    start = Path(settings.model.path) if settings.model.path else None
    processes.on_main(lambda: build(start) and None)
    return build(start)


def _assembled(
    settings: OfflineLearningSettings, prepared: Prepared, folder: RunFolder, processes: Processes
) -> Offline:
    objective = prepared.objective
    updater: OfflineUpdater = OfflineUpdater(
        objective, settings.update, processes, settings.run.total_steps
    )
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
        save_policy=prepared.save,
    )
