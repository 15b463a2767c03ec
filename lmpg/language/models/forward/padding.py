"""Whether a trunk may read rows that are padded on the left, as batches of prompts are."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmpg.language.models.architectures import READERS, TOLERANCE, deviation
from lmpg.language.models.inputs import accepted, mask_and_positions
from lmpg.language.models.precision import in_float32

_BEARS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_TOKENS, _PADDING = 8, 5
"""Of the text on which a trunk is tried, and before it."""


def bears_padding(trunk: nn.Module) -> bool:
    """Whether padding before a text leaves the hidden states of its tokens as they are; looked at
    once.

    Recurrent layers may read padding as tokens, and positions that are counted from the first
    column move with it. Such a trunk gets texts that begin in the first column; padding behind them
    is nothing to a causal model.
    """
    if trunk not in _BEARS:
        _BEARS[trunk] = type(trunk) in READERS or _same_with_padding(trunk)
    return _BEARS[trunk]


@torch.no_grad()
def _same_with_padding(trunk: Any) -> bool:
    device = next(trunk.parameters()).device
    text_1L = torch.arange(1, _TOKENS + 1, device=device)[None]
    padded_1L = F.pad(text_1L, (_PADDING, 0), value=1)
    with in_float32(trunk):
        alone, padded = (_hidden(trunk, ids, _TOKENS) for ids in (text_1L, padded_1L))
    return deviation(padded, alone) <= TOLERANCE


def _hidden(trunk: Any, ids_1L: Tensor, length: int) -> Tensor:
    """Hidden states of the last `length` tokens, the others being padding."""
    end = torch.tensor([ids_1L.shape[1]], device=ids_1L.device)
    mask_1L, positions_1L = mask_and_positions(end - length, end, ids_1L.shape[1])
    arguments = {"input_ids": ids_1L, "attention_mask": mask_1L, "position_ids": positions_1L}
    return trunk(**accepted(trunk, arguments), use_cache=False).last_hidden_state[:, -length:]
