"""A model that does not learn, read from a checkpoint in bfloat16 as it is: in float32 first, it
takes twice the memory, beside its file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from lmpg.language.models.forward.kept_weights import LOW
from lmpg.language.models.settings import ModelSettings
from lmpg.language.models.start.trained_adapter import adapter_config


def stays_low(settings: ModelSettings, trained: bool, learns: bool) -> bool:
    """Whether the model may be read as it is kept, as no weight of its own learns. trained: whether
    a trained adapter lies at `settings.path`. learns: whether anything does, adapters at least."""
    if settings.quantisation != "none" or settings.dtype == "fp32":
        return False
    if trained:
        config = adapter_config("model.path", str(settings.path), settings.revision)
        return config.get("bias", "none") == "none" and not config.get("modules_to_save")
    lora = settings.lora
    return not learns or (lora.rank > 0 and lora.bias == "none" and not lora.modules_to_save)


def read_low(load: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The model that `load(dtype=...)` makes of a checkpoint in bfloat16, with weights in bfloat16
    and all else as if it had been loaded in float32."""
    model = load(dtype=LOW)
    if any(x.dtype == LOW for x in model.buffers()):  # computed in it: other numbers
        return load(dtype=torch.float32)
    for p in model.parameters():
        p.data = p.data.clone()  # not the file's own pages, which may be written to
    for config in (model.config, model.config.get_text_config()):
        config.dtype = torch.float32
    return model
