"""Low-rank adapters (arXiv 2106.09685) through peft, which is imported only when they are used."""

from __future__ import annotations

import copy
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmpg.language.models.decoder_parts import in_use, is_replaced
from lmpg.language.models.forward.kept_weights import LOW, copies_in, is_low, keep_frozen, widened
from lmpg.language.models.precision import save_folder
from lmpg.language.models.settings import LoraSettings
from lmpg.language.models.start.adaptable import not_adaptable, refuse_shared_weights
from lmpg.language.models.start.four_bits import plain_layers
from lmpg.runtime.parts import whole
from lmpg.settings.hints import did_you_mean
from lmpg.settings.section import UserError

_ALL: tuple[tuple[str, ...], ...] = ((), ("all-linear",))
"""What stands for every linear layer but the head."""
_LONGEST_REASON = 400
"""Characters of a foreign error."""


def with_adapter(
    model: PreTrainedModel, settings: LoraSettings, revision: str | None = None
) -> nn.Module:
    """`model` frozen, with adapters that start at zero: its output is the same.

    Their first factors are drawn from torch's global generator. What is saved names the model and
    its revision, so that both are found again; a folder by its whole path.
    """
    targets, names = _targets(model, settings.target_modules), _linear_names(model)
    config = _config(model, settings, targets)
    try:
        whole = wrapped(model, config, revision)
    except (ValueError, TypeError) as error:
        saved = list(settings.modules_to_save)
        besides = f" with model.lora.modules_to_save = {saved}" if saved else ""
        raise UserError(
            f"model.lora.target_modules = {targets}{besides} does not fit this model, expected "
            f"names of its linear layers such as {names}: "
            f"{textwrap.shorten(str(error), _LONGEST_REASON)}"
        ) from None
    refuse_embeddings(model, f"model.lora.target_modules = {targets}", names)
    refuse_shared_weights(model, f"model.lora.target_modules = {targets}")
    if settings.modules_to_save and _tied(model) and not _share_a_weight(model):
        raise UserError(
            f"model.lora.modules_to_save = {list(settings.modules_to_save)}: embedding and output "
            f"layer of {type(model).__name__} are one weight, which peft cannot train as one here, "
            "expected other modules; leave them out"
        )
    if settings.bias != "none" and not _biases(whole):
        where = "this model has" if settings.bias == "all" else "the layers with an adapter have"
        raise UserError(
            f"model.lora.bias = {settings.bias}, but {where} no biases, expected some that could "
            "be trained; leave it out"
        )
    return whole


def _config(model: PreTrainedModel, settings: LoraSettings, targets: list[str] | str) -> Any:
    """The settings as peft takes them. Tied embeddings stay tied where one of them is trained as a
    whole."""
    saved = _fitting(model, settings.modules_to_save, "modules_to_save")
    whole = {model.get_submodule(name) for found in saved.values() for name in found}
    embeddings = {model.get_input_embeddings(), model.get_output_embeddings()}
    return peft_for(f"model.lora.rank = {settings.rank}").LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=(not_adaptable(model) or None) if targets == "all-linear" else None,
        fan_in_fan_out=_has_transposed_layers(model),
        bias=settings.bias,
        modules_to_save=list(settings.modules_to_save) or None,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        ensure_weight_tying=_tied(model) and bool(whole & embeddings),
        task_type="CAUSAL_LM",
    )


def _tied(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def _share_a_weight(model: PreTrainedModel) -> bool:
    """Whether what embeds tokens and what predicts them is one."""
    return (
        in_use(model.get_input_embeddings()).weight is in_use(model.get_output_embeddings()).weight
    )


def refuse_options_without_rank(settings: LoraSettings) -> None:
    """UserError where adapters of rank 0, which are none, are to have something."""
    for name, value in settings:
        if value != type(settings).model_fields[name].default:
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(
                f"model.lora.{name} = {shown}, but model.lora.rank is 0, which trains the whole "
                f"model without adapters. Set model.lora.rank, or leave model.lora.{name} out"
            )


def peft_for(setting: str) -> Any:
    """The library peft; without it UserError, which names the setting that needs it."""
    try:
        import peft
    except ImportError:
        raise UserError(
            f"{setting} needs peft, which is not installed: pip install 'lmpg[lora]', or set "
            "model.lora.rank to 0"
        ) from None
    return peft


def wrapped(model: PreTrainedModel, config: Any, revision: str | None) -> nn.Module:
    """`model` under new adapters of `config`, in float32 over a base in bfloat16 too."""
    import peft

    if (folder := Path(str(model.name_or_path))).is_dir():
        model.name_or_path = str(folder.absolute())
    if low := is_low(model):
        model.requires_grad_(False)
    with warnings.catch_warnings(), widened(low):
        # peft reads a property that transformers has renamed, and tells what tied weights are
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern", RuntimeWarning)
        return peft.get_peft_model(model, config, revision=revision)


def rank_of(model: Any) -> int:
    """The rank of a model's adapters; 0 where it has none."""
    return model.peft_config["default"].r if hasattr(model, "peft_config") else 0


def learning_beside(model: nn.Module) -> int:
    """How many weights learn beside those of adapters: biases, and modules as a whole."""
    if not rank_of(model):
        return 0
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and "lora_" not in name)


def is_lora(module: nn.Module) -> bool:
    """Whether it is a linear layer with low-rank adapters."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def adapted_weight(module: Any, name: str, weight: Tensor) -> Tensor:
    """A layer's weight with the adapter `name` added; with DoRA (arXiv 2402.09353) all that leads
    to an output is then brought to the length that was learned."""
    weight = weight + module.get_delta_weight(name).detach()
    if name not in module.lora_magnitude_vector:
        return weight
    inputs = 0 if module.fan_in_fan_out else 1
    length = torch.linalg.vector_norm(weight, dim=inputs)
    factor = module.lora_magnitude_vector[name].weight.detach() / length
    return weight * factor.unsqueeze(inputs)


def learned_at_start(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what learns, by name, where `model` without its adapter is another than it is now;
    {} where the adapter can be put aside, as one that starts at zero."""
    learning = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    moved = any("lora_B" in name and bool(whole(p).any()) for name, p in learning.items())
    if moved or _biases(model) or _replaced(model):
        return {name: p.clone() for name, p in learning.items()}
    return {}


def _biases(model: nn.Module) -> list[str]:
    """Names of the model's own weights that learn in their place: biases."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return [name for name in names if "lora_" not in name and "modules_to_save" not in name]


def _replaced(model: nn.Module) -> bool:
    """Whether a module that is trained as a whole differs from the one that it was copied from."""
    for module in model.modules():
        if is_replaced(module):
            original: Any = module.original_module
            theirs = dict(original.named_parameters())
            mine = in_use(module).named_parameters()
            pairs = ((whole(p), whole(theirs[name])) for name, p in mine)
            if any(not torch.equal(p, known.to(p.dtype)) for p, known in pairs):
                return True
    return False


def _targets(model: PreTrainedModel, given: tuple[str, ...]) -> list[str] | str:
    """What peft is to adapt: names as they were given, but layers one by one where any of them is
    an expression. A name that fits no layer is refused, whatever the others fit."""
    if given in _ALL:
        return "all-linear"
    fitting = _fitting(model, given, "target_modules")
    if all(f".{name}".endswith(f".{target}") for target in given for name in fitting[target]):
        return list(given)
    return sorted({name for found in fitting.values() for name in found})


def fitting_layers(model: PreTrainedModel, given: tuple[str, ...]) -> list[str]:
    """The layers that `given` are the names of; all linear ones but the head where none is."""
    if given in _ALL:
        return linear_layers(model)
    fitting = _fitting(model, given, "target_modules")
    return sorted({name for found in fitting.values() for name in found})


def _fitting(model: PreTrainedModel, given: tuple[str, ...], key: str) -> dict[str, list[str]]:
    """The names of modules that each of the `given` fits; one that fits none is refused."""
    layers = [name for name, _ in model.named_modules() if name]
    fitting = {target: [name for name in layers if _fits(target, name)] for target in given}
    unknown = [target for target, found in fitting.items() if not found]
    if unknown:
        kinds = {name.rsplit(".", 1)[-1] for name in layers}
        whole = key == "modules_to_save"
        known = sorted(x for x in kinds if not x.isdecimal()) if whole else _linear_names(model)
        raise UserError(
            f"model.lora.{key} = {list(given)}: no {'module' if whole else 'layer'} is called "
            f"{', '.join(unknown)}, expected names of this model's "
            f"{'modules' if whole else 'linear layers'}, such as {known}{_meant(unknown, kinds)}"
        )
    return fitting


def _meant(unknown: list[str], names: set[str]) -> str:
    """What of these names was meant by the first that fits none."""
    if "," in unknown[0]:
        return f"; several names stand beside each other: {unknown[0].replace(',', ' ')}"
    hint = did_you_mean(unknown[0].rpartition(".")[2], names).strip()
    return f"; {hint}" if hint else ""


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
    whole = merged_copy(model, dtype)
    save_folder(folder / "merged", whole, tokenizer, dtype)


def merged_copy(model: Any, dtype: torch.dtype) -> Any:
    """A plain copy in `dtype`, with the adapter merged into it, in float32 unless that is bf16."""
    wide = ({} if dtype == LOW else copies_in(torch.float32, model)) | plain_layers(model, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft tells where weights are tied no more
        whole = copy.deepcopy(model, wide).merge_and_unload()
    return keep_frozen(whole.requires_grad_(False), dtype)


def _has_transposed_layers(model: nn.Module) -> bool:
    """GPT-2 stores its linear layers transposed, and peft wants to be told."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def linear_layers(model: Any) -> list[str]:
    """Names of all linear layers but the head."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D", "FourBit") and module is not head
    ]


def _linear_names(model: PreTrainedModel) -> list[str]:
    names = set(linear_layers(model)) - set(not_adaptable(model))
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def refuse_embeddings(model: PreTrainedModel, targets: str, names: list[str]) -> None:
    """An adapter there would change the output layer, which is read by its plain weight."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if hasattr(layer, "lora_A") or hasattr(layer, "lora_embedding_A"):
            raise UserError(
                f"{targets} has the embedding or the output layer in it, expected only layers "
                f"between them, such as {names}"
            )
