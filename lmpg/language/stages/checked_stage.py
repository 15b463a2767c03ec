"""`lmpg check` of a stage: reads its data, takes a step, and tells what would go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from lmpg.language.data.tokenizing import reading_tokenizer
from lmpg.language.models.footprint.said import lines
from lmpg.language.models.loading import tokenizer_of
from lmpg.language.models.lora import rank_of
from lmpg.language.models.precision import num_weights
from lmpg.language.models.settings import ADAPTERS_FASTER
from lmpg.language.rollouts import traps
from lmpg.language.rollouts.trial import passing_run, step_line
from lmpg.language.stages.prepared import starting_model
from lmpg.language.stages.program import PREPARE, assembled, built
from lmpg.language.stages.settings import OfflineLearningSettings
from lmpg.language.stages.stage_memory import work_of
from lmpg.runs.log_lines import SIDES
from lmpg.runtime.processes import Processes
from lmpg.runtime.room import room_of_each
from lmpg.runtime.spread import spread

SHOWN = 2
"""Examples that are shown."""


def check_stage(settings: OfflineLearningSettings, name: str) -> list[str]:
    """Makes all parts, evaluates, and takes one step; says what it finds and returns the traps."""
    processes = Processes()
    processes.announce()
    settings = processes.launch.obeyed_by(settings)
    with passing_run(settings, name, processes) as folder:
        spread(processes, settings.run.sharding, settings.update.optimizer)
        world = built(settings, processes)
        prepared = PREPARE[type(settings)](settings, world, processes)
        model = starting_model(settings.model, world)
        tokenizer = reading_tokenizer(tokenizer_of(model), settings.data)
        objective: Any = prepared.objective
        loop = assembled(settings, prepared, folder, processes)
        if processes.is_main:
            said = lines(work_of(settings, prepared, processes), room_of_each(processes))
            examples = [pair for x in islice(objective.train, SHOWN) for pair in _named(x)]
            said += [f"{name:<11} {traps.in_a_line(tokenizer, ids)}" for name, ids in examples]
            print("\n".join([prepared.line, *said]), flush=True)
        found = [] if world else [*_of_data(settings, objective, tokenizer)]
        found += traps.of_warmup(settings.update.warmup_steps, loop.total_steps)
        with closing(loop.tracker):
            metrics = loop.iterate(1)
        if processes.is_main:
            print(step_line(metrics, loop.total_steps, processes), flush=True)
    return found


def _named(example: Any) -> list[tuple[str, list[int]]]:
    """The texts of an example with what each of them is taken for."""
    texts = traps.ids_of(example)
    if hasattr(example, "chosen") or hasattr(example, "chosen_ids"):
        return list(zip(SIDES, texts))
    name = "text"
    if hasattr(example, "desirable"):
        name = "desirable" if example.desirable else "undesirable"
    elif hasattr(example, "label"):
        name = f"label {example.label:g}"
    return [(name, ids) for ids in texts]


def _of_data(settings: OfflineLearningSettings, objective: Any, tokenizer: Any) -> Iterator[str]:
    """Traps of the user's data, and of a learning rate for them."""
    parts, module = (objective.train, objective.held_out), objective.module
    ends = getattr(module, "eos_token_ids", ())  # a reward model writes no responses
    yield from traps.of_data(parts, tokenizer, settings.data, ends)
    yield from traps.of_labels(objective.train)
    adapters = rank_of(getattr(module, "model", module)) > 0  # a trained one's, too
    suiting = type(settings).model_fields["update"].default.learning_rate
    suiting *= ADAPTERS_FASTER if adapters else 1
    weights = num_weights(module)
    yield from traps.of_rate(settings.update.learning_rate, suiting, weights, adapters)
