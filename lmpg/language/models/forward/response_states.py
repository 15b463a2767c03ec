"""The states that the tokens of a response are chosen in, as a trunk sees them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmpg.language.models.forward.decoder import LeanForward, lean_forward
from lmpg.language.models.forward.ragged import Ragged
from lmpg.language.models.inputs import accepted, forward_arguments, trimmed

logger = logging.getLogger(__name__)
_AGREES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class ResponseStates:
    """Of the N response tokens of a batch: the hidden state before each, its id, and its place in
    [B·T] of the batch's `shape`."""

    hidden_ND: Tensor
    ids_N: Tensor
    slots_N: Tensor
    shape: torch.Size

    def spread(self, x_N: Tensor) -> Tensor:
        """One number per token as [B, T], 0 in padding."""
        flat = x_N.new_zeros(self.shape.numel()).index_copy(0, self.slots_N, x_N)
        return flat.view(self.shape)


def response_states(trunk: nn.Module, inputs: dict[str, Tensor]) -> ResponseStates:
    """One forward of `trunk` over prompts and responses, which are best given on the CPU: how long
    they are decides what is computed."""
    inputs = {name: x.cpu() for name, x in inputs.items()}
    forward = lean_forward(trunk, inputs)
    if forward is None or not _agrees(trunk, forward):
        return _padded_states(trunk, inputs)
    return _ragged_states(forward, inputs)


def _agrees(trunk: nn.Module, forward: LeanForward) -> bool:
    """Whether the lean forward of a trunk gives what its own gives; looked at once."""
    if trunk not in _AGREES:
        deviation = _lean_deviation(trunk, forward)
        _AGREES[trunk] = deviation <= (1e-3 if forward.dtype == torch.float32 else 0.1)
        if not _AGREES[trunk]:
            logger.info(
                "learning with the model's own forward, which is slower, because hidden states of "
                "the lean one deviate from it by %.2g",
                deviation,
            )
    return _AGREES[trunk]


@torch.no_grad()
def _lean_deviation(trunk: nn.Module, forward: LeanForward) -> float:
    """As a share of their size, of a few tokens of two rows of different lengths."""
    vocabulary = len(trunk.get_input_embeddings().weight)  # type: ignore[operator]
    ids = torch.arange(12).view(2, 6) * 7919 % vocabulary
    inputs = {
        "prompt_ids": ids[:, :3],
        "prompt_lengths": torch.tensor([3, 1]),
        "response_ids": ids[:, 3:],
        "response_lengths": torch.tensor([2, 3]),
    }
    with torch.autocast(forward.device.type, enabled=False):
        found = [
            x.hidden_ND.float()
            for x in (_ragged_states(forward, inputs), _padded_states(trunk, inputs))
        ]
    return float((found[0] - found[1]).norm() / found[1].norm())


def _ragged_states(forward: LeanForward, inputs: dict[str, Tensor]) -> ResponseStates:
    ragged = Ragged.of(inputs).to(forward.device)
    shape = inputs["response_ids"].shape
    return ResponseStates(forward(ragged), ragged.chosen_M, ragged.slot_M, shape)


def _padded_states(trunk: nn.Module, inputs: dict[str, Tensor]) -> ResponseStates:
    rows = trimmed(inputs)
    response_BT, lengths_B = rows["response_ids"], rows["response_lengths"]
    num_steps = response_BT.shape[1]
    step_T = torch.arange(num_steps)
    row_N, step_N = (step_T < lengths_B[:, None]).nonzero(as_tuple=True)
    flat_N = row_N * num_steps + step_N
    shape = inputs["response_ids"].shape
    device = next(trunk.parameters()).device
    arguments = accepted(trunk, forward_arguments(rows))
    with quick_attention(trunk, arguments["input_ids"].shape[1]):
        moved = {name: x.to(device, non_blocking=True) for name, x in arguments.items()}
        output = trunk(**moved, use_cache=False)
    hidden_BTD = output.last_hidden_state[:, -num_steps:]
    ids_N = response_BT.flatten().index_select(0, flat_N)
    slots_N = row_N * shape[1] + step_N
    return ResponseStates(
        # index_select, not x[index]: its backward is deterministic
        hidden_BTD.flatten(0, 1).index_select(0, flat_N.to(device)),
        ids_N.to(device),
        slots_N.to(device),
        shape,
    )


@contextmanager
def quick_attention(trunk: Any, width: int) -> Iterator[None]:
    """transformers' eager attention where torch's fused one is slow: bfloat16 on a CPU, short
    rows. What is saved of the model stays as it is."""
    config = trunk.config
    on_cpu = next(trunk.parameters()).device.type == "cpu"
    slow = torch.is_autocast_enabled("cpu") and on_cpu and width <= 256
    if not slow or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def one_token_more(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a token, whichever, after each response: the state before it is the one after the last.

    A forward leaves the added token out, so the model's context is not exceeded.
    """
    ids_BT = inputs["response_ids"]
    return {
        **inputs,
        "response_ids": torch.cat([ids_BT, torch.zeros_like(ids_BT[:, :1])], 1),
        "response_lengths": inputs["response_lengths"] + 1,
    }
