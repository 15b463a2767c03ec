"""Low-rank adapters (arXiv 2106.09685) through peft, which is imported only when they are used."""

from __future__ import annotations

import copy
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lmpg.language.models.forward.kept_weights import copies_in
from lmpg.language.models.precision import save_folder
from lmpg.language.models.settings import LoraSettings
from lmpg.settings.section import UserError

_LONGEST_REASON = 400
"""Characters of a foreign error."""


def with_adapter(
    model: PreTrainedModel, settings: LoraSettings, revision: str | None = None
) -> nn.Module:
    """`model` frozen, with adapters that start at zero: its output is the same.

    Their first factors are drawn from torch's global generator. What is saved names the model and
    its revision, so that both are found again; a folder by its whole path.
    """
    try:
        import peft
    except ImportError:
        raise UserError(
            f"model.lora.rank = {settings.rank} needs peft, which is not installed: "
            "pip install 'lmpg[lora]', or set model.lora.rank to 0"
        ) from None
    targets, names = _targets(model, settings.target_modules), _linear_names(model)
    if (folder := Path(str(model.name_or_path))).is_dir():
        model.name_or_path = str(folder.absolute())
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=_has_transposed_layers(model),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft reads a property that transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = peft.get_peft_model(model, config, revision=revision)
    except ValueError as error:
        raise UserError(
            f"model.lora.target_modules = {targets} does not fit this model, expected names of its "
            f"linear layers such as {names}: {textwrap.shorten(str(error), _LONGEST_REASON)}"
        ) from None
    _refuse_embeddings(model, targets, names)
    return wrapped


def _targets(model: PreTrainedModel, given: tuple[str, ...]) -> list[str] | str:
    """What peft is to adapt: names as they were given, but layers one by one where any of them is
    an expression. A name that fits no layer is refused, whatever the others fit."""
    if given in ((), ("all-linear",)):
        return "all-linear"
    layers = [name for name, _ in model.named_modules() if name]
    fitting = {target: [name for name in layers if _fits(target, name)] for target in given}
    unknown = [target for target, found in fitting.items() if not found]
    if unknown:
        raise UserError(
            f"model.lora.target_modules = {list(given)}: no layer is called {', '.join(unknown)}, "
            f"expected names of this model's linear layers, such as {_linear_names(model)}"
        )
    if all(f".{name}".endswith(f".{target}") for target in given for name in fitting[target]):
        return list(given)
    return sorted({name for found in fitting.values() for name in found})


def _fits(target: str, name: str) -> bool:
    """Whether `target` is the end of a layer's name, or an expression for the whole of it."""
    try:
        return f".{name}".endswith(f".{target}") or re.fullmatch(target, name) is not None
    except re.error:
        return False


def save_adapter_and_merged(model: Any, folder: Path, tokenizer, dtype: torch.dtype) -> None:
    """The adapter in `folder`, the whole model for plain transformers, in `dtype`, in
    `folder`/merged.

    A copy is merged: adding the adapter to the live weights and taking it off again would round.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    wide = copies_in(dtype, model) if dtype == torch.float32 else {}
    whole = copy.deepcopy(model, wide).merge_and_unload()
    save_folder(folder / "merged", whole, tokenizer, dtype)


def _has_transposed_layers(model: nn.Module) -> bool:
    """GPT-2 stores its linear layers transposed, and peft wants to be told."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _linear_names(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and module is not head
    }
    return sorted(linear)


def _refuse_embeddings(model: PreTrainedModel, targets, names: list[str]) -> None:
    """An adapter there would change the output layer, which is read by its plain weight."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if hasattr(layer, "lora_A"):
            raise UserError(
                f"model.lora.target_modules = {targets} has the embedding or the output layer in "
                f"it, expected only layers between them, such as {names}"
            )
