"""A trained adapter as the start: its base model is loaded, and the adapter goes on learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from lmpg.language.models.lora import (
    fitting_layers,
    is_lora,
    peft_for,
    refuse_embeddings,
    wrapped,
)
from lmpg.language.models.paths import ADAPTER_CONFIG
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.models.start.adaptable import refuse_shared_weights
from lmpg.settings.section import UserError

WEIGHTS = "adapter_model.safetensors"
_NAMES = {"rank": "r", "alpha": "lora_alpha"}
"""Settings that peft calls otherwise."""
_UNKNOWN = ("layer_replication", "alora_invocation_tokens", "trainable_token_indices")
"""Of a LoraConfig: what lmpg does not know how to train or to sample from."""
_SHOWN = 3
"""Faults of a file that are named."""


Place = tuple[str, str | None]
"""A path or Hub id, and a revision of it."""


def base_of(key: str, path: str | None, revision: str | None = None) -> Place | None:
    """The model that the adapter at `path`, which the setting `key` names, belongs to; None where
    no adapter lies there."""
    config = {} if path is None else adapter_config(key, path, revision)
    if not config:
        return None
    kind, base = config["peft_type"], config.get("base_model_name_or_path")
    if kind != "LORA":
        raise UserError(
            f"{key} = {path} is an adapter of the kind {kind}, expected LORA; merge it into its "
            f"model by merge_and_unload, and set {key} to that"
        )
    if not base:
        raise UserError(
            f"{key} = {path}: its {ADAPTER_CONFIG} names no base_model_name_or_path, expected the "
            "model that the adapter was trained on; write it there"
        )
    return str(base), config.get("revision")


def adapter_config(key: str, path: str, revision: str | None = None) -> dict[str, Any]:
    """What the adapter at `path` says of itself; {} where none lies there."""
    found = _file(path, ADAPTER_CONFIG, revision)
    if found is None:
        return {}
    try:
        config: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{key} = {path}: its {ADAPTER_CONFIG} cannot be read ({type(error).__name__}: "
            f"{error}), expected a folder written by save_pretrained of peft; mend the file"
        ) from None
    return config


def base_key(key: str, path: str | None) -> str:
    """Where the path of an adapter's base model stands, for messages."""
    return f"{key} = {path}: base_model_name_or_path in its {ADAPTER_CONFIG}"


def tokenizer_place(key: str, path: str, revision: str | None = None) -> Place:
    """Where the tokenizer of the model or adapter at `path` lies: beside an adapter, or with its
    base model."""
    base = base_of(key, path, revision)
    if base is None or _file(path, "tokenizer_config.json", revision) is not None:
        return path, revision
    return base


def with_trained_adapter(
    model: PreTrainedModel, key: str, settings: ModelSettings, base: Place
) -> nn.Module:
    """`model`, which is the `base` of the adapter at `settings.path`, frozen under that adapter,
    which learns on. UserError where the settings ask for another, or where its file and its config
    do not belong together. key: the setting that the path comes from."""
    place, asked = f"{key} = {settings.path}", settings.lora
    config = _config(place, settings)
    wanted = fitting_layers(model, asked.target_modules)
    try:
        whole = wrapped(model, config, base[1])
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{place} does not fit its base model {base[0]}: {error}. Mend its {ADAPTER_CONFIG}"
        ) from None
    refuse_embeddings(model, f"{place}: its target_modules", wanted)
    refuse_shared_weights(model, f"{place}: its target_modules")
    adapted = {name for name, x in model.named_modules() if is_lora(x)}
    if asked.target_modules and set(wanted) != adapted:
        raise UserError(
            f"model.lora.target_modules = {list(asked.target_modules)} are not the layers that "
            f"{place} adapts, expected those; leave model.lora.target_modules out"
        )
    _load(whole, f"{place}: its {WEIGHTS}", _file(str(settings.path), WEIGHTS, settings.revision))
    return whole


def _config(place: str, settings: ModelSettings) -> Any:
    """The adapter's config, for learning; dropout, which changed log-probs from one forward to the
    next, is off."""
    load = peft_for(place).LoraConfig.from_pretrained
    config = load(str(Path(str(settings.path)).expanduser()), revision=settings.revision)
    for name in _UNKNOWN:
        if value := getattr(config, name, None):
            raise UserError(
                f"{place}: its {ADAPTER_CONFIG} has {name} = {value}, which lmpg does not know, "
                "expected none; merge it into its model by merge_and_unload"
            )
    _refuse_contradictions(place, config, settings.lora)
    config.lora_dropout, config.inference_mode = 0.0, False
    config.task_type = "CAUSAL_LM"  # what it is now, whatever it was trained for: peft loads it so
    return config


def _refuse_contradictions(place: str, config: Any, settings: LoraSettings) -> None:
    """Settings that were left at their defaults take the adapter's values."""
    for name, value in settings:
        if name == "target_modules" or value == type(settings).model_fields[name].default:
            continue
        found = getattr(config, _NAMES.get(name, name))
        found = tuple(found or ()) if name == "modules_to_save" else found
        same = set(found) == set(value) if name == "modules_to_save" else found == value
        if not same:
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(
                f"model.lora.{name} = {shown}, but {place} is a trained adapter that has "
                f"{list(found) if isinstance(found, tuple) else found}, expected the same; leave "
                f"model.lora.{name} out"
            )


def _load(model: Any, what: str, file: Path | None) -> None:
    """The numbers in `file` as those of the adapter in `model`; neither may have others."""
    peft = peft_for(what)
    if file is None:
        raise UserError(
            f"{what} is missing, expected an adapter saved as safetensors; save it again by "
            "save_pretrained of peft"
        )
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{what} cannot be read ({error}); copy it again") from None
    mine = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = [f"lacks {name}" for name in sorted(mine.keys() - weights.keys())]
    wrong += [f"holds {name}, which has no place" for name in sorted(weights.keys() - mine.keys())]
    wrong += [
        f"holds {name} of shape {tuple(weights[name].shape)}, expected {tuple(x.shape)}"
        for name, x in mine.items()
        if name in weights and weights[name].shape != x.shape
    ]
    if wrong:
        more = " …" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{what} {'; '.join(wrong[:_SHOWN])}{more}, expected what its {ADAPTER_CONFIG} and its "
            "base model say; copy the adapter again, or mend the config"
        )
    peft.set_peft_model_state_dict(model, weights)


def _file(path: str, name: str, revision: str | None) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        found = cached_file(
            path,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # what is wrong with the path is said when the model is loaded
        return None
    return None if found is None else Path(found)
