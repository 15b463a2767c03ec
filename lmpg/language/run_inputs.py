"""What a language-model run reads, and must find unchanged when it is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from lmpg.language.data.data_files import data_inputs, rows_text
from lmpg.language.environments.named import environment_spec, source_of, tool_spec
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.models.model_files import model_files, start_files
from lmpg.language.rewards.local_functions import fingerprint
from lmpg.language.rewards.specs import Spec, parsed_spec
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.world import World
from lmpg.runs.fingerprints import Inputs, Part, numbered, source_files


def inputs_of(
    settings: LanguageSettings,
    world: World | None,
    given: Mapping[str, Callable] = MappingProxyType({}),
) -> Inputs:
    """The files of models, data, rewards and environments (settings with those of the world, if
    there is one).

    given: rewards and environments that cannot be imported, by their names in the settings.
    """
    data: Inputs = {}
    if world is None and settings.data.path is not None:
        data = data_inputs(settings.data)
    elif world is not None:
        rows = partial(rows_text, [*world.train_rows, *world.held_out_rows])
        data = {"data.world": {"its rows": rows}}
    sources = [_sources(text, given, _reward_source) for text in settings.rewards.functions]
    others = {key: getattr(settings.model, key) for key in ("reference", "teacher")}
    models = [model_files(path) for path in settings.rewards.models]
    return {
        **data,
        **start_files(settings.model),
        **{f"model.{key}": model_files(path) for key, path in others.items() if path},
        "rewards.functions": numbered(sources),
        "rewards.models": numbered(models),
        **_environment(settings.environment, given),
    }


def _environment(settings: EnvironmentSettings, given: Mapping[str, Callable]) -> Inputs:
    """The files of an environment and of tools; nothing where there are none, as in older runs."""
    found: dict[str, Mapping[str, Part]] = {}
    if settings.path is not None:
        source = partial(_source_of, environment_spec)
        found["environment.path"] = _sources(settings.path, given, source)
    if settings.tools:
        source = partial(_source_of, tool_spec)
        files = [_sources(text, given, source) for text in settings.tools]
        found["environment.tools"] = numbered(files)
    return found


def _source_of(parsed: Callable[[str], Spec], text: str) -> str | None:
    return source_of(parsed(text))


def _reward_source(text: str) -> str | None:
    spec = parsed_spec(text)
    return None if spec.is_builtin else spec.function.rpartition(":")[0]


def _sources(
    text: str, given: Mapping[str, Callable], source_of_text: Callable[[str], str | None]
) -> Mapping[str, Part]:
    """The files of a function or class, or what is known of one that was given as an object."""
    if text in given:
        return {text: fingerprint(given[text])}
    source = source_of_text(text)
    return {} if source is None else source_files(source)
