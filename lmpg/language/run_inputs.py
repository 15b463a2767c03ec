"""What a language-model run reads, and must find unchanged when it is resumed."""

from __future__ import annotations

from functools import partial

from lmpg.language.data.data_files import data_inputs, rows_text
from lmpg.language.models.model_files import model_files, start_files
from lmpg.language.rewards.specs import parsed_spec
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.world import World
from lmpg.runs.fingerprints import Inputs, numbered, source_files


def inputs_of(settings: LanguageSettings, world: World | None) -> Inputs:
    """The files of models, data and rewards (settings with those of the world, if there is one)."""
    if world is None:
        data = data_inputs(settings.data)
    else:
        rows = partial(rows_text, [*world.train_rows, *world.held_out_rows])
        data = {"data.world": {"its rows": rows}}
    specs = [parsed_spec(text) for text in settings.rewards.functions]
    sources = [{} if x.is_builtin else source_files(x.function.rpartition(":")[0]) for x in specs]
    others = {key: getattr(settings.model, key) for key in ("reference", "teacher")}
    models = [model_files(path) for path in settings.rewards.models]
    return {
        **data,
        **start_files(settings.model),
        **{f"model.{key}": model_files(path) for key, path in others.items() if path},
        "rewards.functions": numbered(sources),
        "rewards.models": numbered(models),
    }
