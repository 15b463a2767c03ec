"""Models and tokenizers out of folders and from the Hub: whole, or refused by name.

transformers draws weights at random where a checkpoint lacks them, and leaves out those that the
model has no place for. Here either is an error, but for a new head where one is asked for.
"""

from __future__ import annotations

import logging
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from lmpg.language.models.model_files import (
    damage,
    integer_weights,
    model_files,
    refuse_broken_settings,
    refuse_fetched_kernels,
    refuse_pointers,
)
from lmpg.language.models.paths import is_adapter_folder, refuse_missing_folder
from lmpg.language.models.precision import no_progress_bars
from lmpg.language.models.start.four_bits import arguments_for, unpack_in_each_product
from lmpg.settings.on_the_hub import access_advice
from lmpg.settings.section import UserError

WHAT = {
    transformers.AutoModelForCausalLM: "causal language model",
    transformers.AutoModelForSequenceClassification: "sequence classifier",
    transformers.AutoModel: "critic",
}
"""What a model of each class is called in errors."""
_WRAPPED = {
    "_orig_mod.": "torch.compile adds it: save model._orig_mod",
    "module.": "DistributedDataParallel adds it: save model.module",
    "base_model.model.": "peft adds it: save model.merge_and_unload()",
}
_FORMER_BUFFERS = re.compile(r"(\binv_freq|\bmasked_bias|\battn\.bias|\battention\.bias)$")
"""Constants that older versions of transformers saved among the weights."""
LARGE = 2 * 10**9
"""Bytes of a model whose loading is shown."""
_KINDS = (torch.float32, torch.bfloat16, torch.float16)
_SHOWN, _LONGEST_REASON = 3, 400
"""Weights named, and characters of a foreign error."""


def pretrained_tokenizer(
    key: str, path: str, trust_remote_code: bool = False, revision: str | None = None
) -> Any:
    """The tokenizer at `path`, which the setting `key` names."""
    refuse_pointers(key, Path(path).expanduser())
    load = transformers.AutoTokenizer.from_pretrained
    return _loaded(key, "tokenizer", load, path, revision, trust_remote_code=trust_remote_code)


def pretrained_model(
    key: str,
    kind: Any,
    path: str,
    trust_remote_code: bool = False,
    new_head: bool = False,
    revision: str | None = None,
    quantisation: str = "none",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The model of the auto class `kind` at `path`, in `dtype`, in eval mode, every weight from
    there; with `quantisation` nf4 its linear layers but the head are packed into 4 bits one by one.

    With `new_head` the layers on top of its trunk may be new, drawn from torch's global generator,
    and give one label. revision: of a Hub id.
    """
    _refuse_adapter(key, path)
    refuse_broken_settings(key, Path(path).expanduser())
    refuse_fetched_kernels(key, path, revision)
    model, info = _loaded(
        key,
        WHAT[kind],
        kind.from_pretrained,
        path,
        revision,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, with the names
        **({"num_labels": 1} if new_head else {}),
        **arguments_for(quantisation),
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{key} = {path} is a LoRA adapter, expected a whole model")
    _refuse_a_part(key, path, kind, model, info, new_head)
    _refuse_quantised(key, path, WHAT[kind], model, revision)
    unpack_in_each_product(f"{key} = {path}", model, quantisation)
    _refuse_other_numbers(key, path, WHAT[kind], model)
    _keep_weights_as_they_are(model)
    return model.eval()


def _refuse_quantised(
    key: str, path: str, what: str, model: PreTrainedModel, revision: str | None
) -> None:
    """UserError for quantised weights whose scales transformers does not know, or knows not of."""
    quantized = getattr(model.config, "quantization_config", None)
    if quantized and not getattr(model, "hf_quantizer", None):
        raise UserError(
            f"{key} = {path}: its quantization_config names a method that transformers does not "
            f"know ({_method(quantized)}), expected a whole {what}; save it unquantised"
        )
    if not quantized and (names := integer_weights(path, revision)):
        raise UserError(
            f"{key} = {path}: {_named(names)} hold integers, as quantised weights do, and its "
            f"config.json has no quantization_config, expected a whole {what}; save it "
            "unquantised"
        )


def _refuse_other_numbers(key: str, path: str, what: str, model: PreTrainedModel) -> None:
    """UserError for weights that are read as numbers of another kind, such as bitsandbytes' 8 bits:
    lmpg's own forward and engines read a weight as it stands there."""
    named = model.named_parameters()
    strange = {
        x: p.dtype for x, p in named if p.dtype not in _KINDS and not hasattr(p, "quant_state")
    }
    if strange:
        kinds = ", ".join(sorted({str(x).removeprefix("torch.") for x in strange.values()}))
        raise UserError(
            f"{key} = {path}: {_named(strange)} are kept as {kinds}, as quantised weights are, "
            f"expected a whole {what} in fp32, bf16 or fp16, or in bitsandbytes' 4 bits; save it "
            "unquantised"
        )


def _keep_weights_as_they_are(model: PreTrainedModel) -> None:
    """RWKV's first forward halves weights, for float16, and they would be saved so."""
    module: Any
    for module in model.modules():
        if hasattr(module, "_rescale_layers"):
            module._rescale_layers = _nothing


def _nothing() -> None:
    """In place of a method; `copy.deepcopy` leaves a function as it is."""


def _method(quantized: Any) -> str:
    found = quantized if isinstance(quantized, dict) else vars(quantized)
    return str(found.get("quant_method"))


def _refuse_adapter(key: str, path: str) -> None:
    folder = Path(path).expanduser()
    if is_adapter_folder(path):
        merged = folder / "merged"
        fix = f"set {key} to {merged}" if merged.is_dir() else "merge it into its model first"
        raise UserError(f"{key} = {path} is a LoRA adapter, expected a whole model; {fix}")


def _refuse_a_part(
    key: str, path: str, kind: Any, model: PreTrainedModel, info: dict[str, Any], new_head: bool
) -> None:
    """UserError unless the checkpoint and the model have the same weights."""
    missing = set(info["missing_keys"])
    surplus = {name for name in info["unexpected_keys"] if not _FORMER_BUFFERS.search(name)}
    if kind is transformers.AutoModelForSequenceClassification:
        missing = {x for x in missing if not new_head or _top(x) not in _head_names(model)}
        surplus = {x for x in surplus if _top(x) in _trunk_names(model)}
        if missing and all(_top(x) in _head_names(model) for x in missing):
            raise UserError(
                f"{key}: {path} has no trained {', '.join(sorted(missing))}, expected a trained "
                "sequence classifier; train one with scripts/train_reward_model.py"
            )
    other = [f"{x} {tuple(a)} instead of {tuple(b)}" for x, a, b in info["mismatched_keys"]]
    said = [
        f"lacks {len(missing)} of the model's weights ({_named(missing)})" if missing else "",
        f"holds {len(surplus)} that the model has no place for ({_named(surplus)})"
        if surplus
        else "",
        f"holds {len(other)} of another shape ({_named(other)})" if other else "",
    ]
    if any(said):
        raise UserError(
            f"{key} = {path}: its file {' and '.join(filter(None, said))}, expected a whole "
            f"{WHAT[kind]}; {_mending(missing, info['unexpected_keys'], model.base_model_prefix)}"
        )


def _mending(missing: Iterable[str], unexpected: Iterable[str], trunk: str) -> str:
    """What to do about a checkpoint that does not fit, by what its names have in common."""
    mine = {name.removeprefix(f"{trunk}.") for name in missing} | set(missing)
    prefixes = {x[: -len(m)] for x in unexpected for m in mine if x.endswith(f".{m}")}
    for prefix in sorted(prefixes, key=len):
        if all(name.startswith(prefix) for name in unexpected):
            why = _WRAPPED.get(prefix, "rename them")
            return f"all names in it begin with {prefix!r}, which must go ({why})"
    return "save the whole model there by save_pretrained, with the config.json that belongs to it"


def _named(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _top(name: str) -> str:
    return name.partition(".")[0]


def _head_names(model: PreTrainedModel) -> set[str]:
    """The layers on top of a classifier's trunk."""
    if model.base_model is model:
        return {"score", "classifier"}
    return {name for name, child in model.named_children() if child is not model.base_model}


def _trunk_names(model: PreTrainedModel) -> set[str]:
    """What a trunk's weights are called first, whether or not they were saved with a head."""
    return {model.base_model_prefix, *(name for name, _ in model.base_model.named_children())}


def _loaded(
    key: str, what: str, load: Callable, path: str, revision: str | None, **arguments: Any
) -> Any:
    """`load(path)`, where whatever is wrong with the path becomes a UserError naming `key`."""
    folder = Path(path).expanduser()
    refuse_missing_folder(key, path, what, revision)
    arguments |= {} if revision is None else {"revision": revision}
    quiet = what == "tokenizer" or not _takes_long(path, revision)
    try:
        with no_progress_bars() if quiet else nullcontext(), _without_report():
            return load(str(folder) if folder.is_dir() else path, **arguments)
    except Exception as error:  # whatever transformers and a model's own code meet in bad files
        found = None if isinstance(error, ImportError) else damage(folder, what, key)
        advice = access_advice(error)  # where the Hub has it, nobody means a folder
        here = "" if advice or folder.is_dir() else ", which is no folder here"
        at = here if revision is None else f" (model.revision = {revision})"
        raise UserError(
            f"{key} = {path}{at}: no {what} could be loaded from there, expected a Hub id that can "
            "be reached or a folder written by save_pretrained: "
            f"{found or advice or _reason(error)}"
        ) from error


def _takes_long(path: str, revision: str | None) -> bool:
    """Whether a model's loading is worth a progress bar, in the main process: a large one, or one
    that has to be fetched from the Hub first."""
    sizes = [file.stat().st_size for file in model_files(path, revision).values()]
    return os.environ.get("RANK", "0") == "0" and (not sizes or sum(sizes) >= LARGE)


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers' warnings pass, but for those of missing weights, which are judged here, and
    of a checkpoint that is in 4 bits already."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_no_report)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)
            yield
    finally:
        logger.removeFilter(_no_report)


def _no_report(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return "LOAD REPORT" not in said and "checkpoint seem corrupted" not in said


def _reason(error: Exception) -> str:
    """An error in one line, with its kind where it says little itself."""
    if type(error).__name__ == "UnpicklingError":
        return (
            "its .bin file holds other objects than tensors, which lmpg never unpickles, or is "
            "damaged; save it as safetensors"
        )
    said = " ".join(line.strip() for line in str(error).splitlines()[:2])
    said = said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}"
    return textwrap.shorten(said, _LONGEST_REASON)
