"""What a language-model run reads, and must find unchanged when it is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from lmpg.language.data.data_files import data_inputs, rows_text
from lmpg.language.models.model_files import model_files, start_files
from lmpg.language.rewards.local_functions import fingerprint
from lmpg.language.rewards.specs import parsed_spec
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.world import World
from lmpg.runs.fingerprints import Inputs, Part, numbered, source_files


def inputs_of(
    settings: LanguageSettings,
    world: World | None,
    given: Mapping[str, Callable] = MappingProxyType({}),
) -> Inputs:
    """The files of models, data and rewards (settings with those of the world, if there is one).

    given: rewards that cannot be imported, by their names in the settings.
    """
    data: Inputs = {}
    if world is None and settings.data.path is not None:
        data = data_inputs(settings.data)
    elif world is not None:
        rows = partial(rows_text, [*world.train_rows, *world.held_out_rows])
        data = {"data.world": {"its rows": rows}}
    sources = [_sources(text, given) for text in settings.rewards.functions]
    others = {key: getattr(settings.model, key) for key in ("reference", "teacher")}
    models = [model_files(path) for path in settings.rewards.models]
    return {
        **data,
        **start_files(settings.model),
        **{f"model.{key}": model_files(path) for key, path in others.items() if path},
        "rewards.functions": numbered(sources),
        "rewards.models": numbered(models),
    }


def _sources(text: str, given: Mapping[str, Callable]) -> Mapping[str, Part]:
    """The files of a reward function, or what is known of one that was given as an object."""
    if text in given:
        return {text: fingerprint(given[text])}
    spec = parsed_spec(text)
    return {} if spec.is_builtin else source_files(spec.function.rpartition(":")[0])
