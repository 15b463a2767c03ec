"""A model that does not learn, read from a checkpoint in bfloat16 as it is: in float32 first, it
takes twice the memory, beside its file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from lmpg.language.models.forward.kept_weights import LOW
from lmpg.language.models.settings import ModelSettings


def stays_low(settings: ModelSettings, learns: bool) -> bool:
    """Whether the model may stay in its checkpoint's precision, and no weight of its own learns.
    learns: whether anything does, adapters at least."""
    lora, plain = settings.lora, settings.quantisation == "none" and settings.dtype != "fp32"
    adapters_alone = lora.rank > 0 and lora.bias == "none" and not lora.modules_to_save
    return plain and (adapters_alone or not learns)


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
