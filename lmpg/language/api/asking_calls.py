"""`lmpg.evaluate` and `lmpg.generate`: the commands of these names, called from Python with
objects."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lmpg.language.api.finished import Run
from lmpg.language.api.guest import as_found
from lmpg.language.api.objects import settings_and_objects
from lmpg.language.api.outcomes import EvaluationResult, Texts
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.trained.command_settings import (
    GIVEN,
    AskingSettings,
    EvaluateSettings,
    GenerateSettings,
)
from lmpg.language.trained.of_run import START, asked
from lmpg.settings.raw import RawSettings, misplaced
from lmpg.settings.section import UserError
from lmpg.training.given import Given, placed

S = TypeVar("S", bound=AskingSettings)


def evaluate(
    model: Any,
    data: Any = None,
    rewards: Any = None,
    *,
    tokenizer: Any = None,
    **settings: Any,
) -> EvaluationResult:
    """Measure a model on prompts, as `lmpg evaluate` does: mean score, pass@k, greedy, lengths.

    model: a `Run`, a run's folder, a model's folder or Hub id, or a transformers model with its
    `tokenizer`. data, rewards: as in `lmpg.train`; without them those of the run. settings: those
    of the command, as samples=8, compare="start", size=100, sampling={"temperature": 0.7}.
    """
    raw, given = _settings(EvaluateSettings, model, tokenizer, data, rewards, settings)
    with as_found(), _written(EvaluateSettings, raw, given) as made:
        refuse_missing_paths(made, (START, *given.names))
        from lmpg.language.trained.measured import evaluate as measured

        return EvaluationResult(measured(made, given.functions))


def generate(
    model: Any,
    prompts: str | Sequence[Any],
    *,
    tokenizer: Any = None,
    **settings: Any,
) -> Texts:
    """Responses of a model to prompts, texts or chats, as `lmpg generate` gives them.

    model: as in `evaluate`. prompts: one or a list; a chat is a list of messages. settings: those
    of the command, as max_new_tokens=64, temperature=0.7, samples=4, greedy=True. Returns a text
    for each prompt, or where there are several samples a list of texts.
    """
    raw, given = _settings(GenerateSettings, model, tokenizer, None, None, settings)
    asked_for = _listed(prompts)
    if not asked_for:
        return Texts([])
    with as_found(), _written(GenerateSettings, raw, given) as made:
        refuse_missing_paths(made, (GIVEN, *given.names))
        from lmpg.language.trained.loaded import began, loaded
        from lmpg.language.trained.responses import prompts_of, responses

        generator = loaded(made, made.data, began(made))
        found = responses(made, generator, prompts_of(made, generator, asked_for))
        return Texts(list(found))


def _listed(prompts: Any) -> list[Any]:
    """The prompts: one text, one chat, or several of these."""
    if isinstance(prompts, str):
        return [prompts]
    listed = list(_several(prompts, "prompts"))
    if listed and all(isinstance(x, Mapping) for x in listed):
        return [listed]
    for i, prompt in enumerate(listed):
        _several(prompt, f"prompts[{i}]")
    return listed


def _several(value: Any, key: str) -> Iterable[Any]:
    """A value that holds several, as a text and a chat do; a message alone is no chat."""
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise UserError(
            f"{key} is a {type(value).__name__}, expected a text, a chat, which is a list of "
            'messages such as {"role": "user", "content": "…"}, or a list of these'
        )
    return value


def _settings(
    kind: type[AskingSettings],
    model: Any,
    tokenizer: Any,
    data: Any,
    rewards: Any,
    settings: Mapping[str, Any],
) -> tuple[RawSettings, Given]:
    """The settings that a call gives, with names for objects; and the objects.

    Settings of the sampling may stand beside the sections.
    """
    if data is not None and "data" not in kind.model_fields:
        raise UserError("data is given, but nothing is evaluated; leave it out")
    decoding: Any = kind.model_fields["sampling"].annotation
    sections: dict[str, Any] = {}
    for name, value in settings.items():
        value = str(value.folder) if isinstance(value, Run) else value  # to compare with
        if name not in kind.model_fields and name in decoding.model_fields:
            sections["sampling"] = {**sections.get("sampling", {}), name: value}
        elif isinstance(value, Mapping):
            sections[name] = {**value, **sections.get(name, {})}
        else:
            sections[name] = value
    place = str(model.folder) if isinstance(model, Run) else model
    raw, given = settings_and_objects(kind, place, tokenizer, data, rewards, None, sections)
    if problems := misplaced(kind, raw, kind.__name__.removesuffix("Settings").lower()):
        raise UserError("\n".join(problems))
    return raw, given


@contextmanager
def _written(kind: type[S], raw: RawSettings, given: Given) -> Iterator[S]:
    """The settings; models and data in memory lie in files for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="lmpg-") as folder:
        places = {name: os.path.join(folder, name.partition(":")[2]) for name in given.parts}
        for name, write in given.parts.items():
            write(Path(places[name]))
        yield asked(kind, placed(raw, places))
