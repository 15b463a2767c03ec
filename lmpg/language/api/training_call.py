"""`lmpg.train`: the programs of the command line, called from Python with objects."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lmpg.language.api.finished import Run
from lmpg.language.api.guest import as_found
from lmpg.language.api.objects import settings_and_objects
from lmpg.language.methods import methods, preset_below, run_with, settings_class
from lmpg.language.missing import refuse_missing_paths
from lmpg.settings.presets import named_preset
from lmpg.settings.raw import layered, misplaced, placed, settled
from lmpg.settings.section import Problems, UserError
from lmpg.training.on_step import OnStep


def train(
    name: str,
    model: Any = None,
    data: Any = None,
    rewards: Any = None,
    *,
    tokenizer: Any = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Run:
    """Train a language model, as `lmpg train NAME` does with these settings; returns the run.

    name: an algorithm, a stage or a preset. model: a Hub id, a folder, or a transformers model,
    which stays as it is; then with `tokenizer`. data: a path, a Hub id, a datasets.Dataset or
    DatasetDict, a pandas DataFrame, or a list of dicts. rewards: one or several of: a function, its
    name (built in, `FILE.py:NAME` or `package.module:NAME`), a reward model's path or Hub id. Model
    and reward model may be the `Run` that has made them.
    Each of these may also be its whole section, as data={"path": dataset, "answer_column": "a"}.
    on_step: called after every step with its number and metrics; returns "stop" to end the run.
    settings: further sections, as update={"learning_rate": 1e-5}, run={"total_steps": 50}; as
    environment also a class with `reset` and `step`, as its tools functions.

    Bad settings raise `UserError`. Without model and data the run learns in a built-in world.
    """
    if not isinstance(name, str):
        raise UserError(f"name is a {type(name).__name__}, expected a method's name, as 'grpo'")
    if on_step is not None and not callable(on_step):
        raise UserError(f"on_step is a {type(on_step).__name__}, expected a function")
    method = named_preset(name, methods())[0]
    kind = settings_class(method)
    sections = _without_its_name(settings, method)
    raw, given = settings_and_objects(kind, model, tokenizer, data, rewards, on_step, sections)
    problems, raw = Problems(misplaced(kind, raw, "train")), placed(kind, raw)
    values = layered(kind, preset_below(name, raw), raw)
    look = partial(refuse_missing_paths, to_come=given.names if given else ())
    made = settled(kind, values, problems, look)
    with as_found():
        return Run(run_with(made, name, given))


def _without_its_name(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The sections; a config.yaml also has the method's name among the algorithm's settings."""
    section = settings.get("algorithm")
    if not isinstance(section, Mapping) or "name" not in section:
        return dict(settings)
    if section["name"] != method:
        raise UserError(
            f"algorithm.name = {section['name']!r}, but the method that is called is {method}; "
            f"call lmpg.train({section['name']!r}, …), or leave algorithm.name out"
        )
    return {**settings, "algorithm": {k: x for k, x in section.items() if k != "name"}}
