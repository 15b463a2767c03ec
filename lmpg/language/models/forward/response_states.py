"""Hidden states of the tokens of responses: from the training forward where it knows the trunk,
else from the trunk's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmpg.language.models.architectures import (
    TOLERANCE,
    architecture,
    deviation,
    probe_ids,
    unsupported,
)
from lmpg.language.models.decoder_parts import Architecture
from lmpg.language.models.forward.decoder import Run, hidden_states
from lmpg.language.models.forward.padding import bears_padding
from lmpg.language.models.forward.ragged import Ragged
from lmpg.language.models.forward.recompute import layers_recomputed, recomputed, recomputes
from lmpg.language.models.inputs import (
    accepted,
    chosen_steps,
    forward_arguments,
    steps_in_turn,
    trimmed,
    uploaded,
)
from lmpg.language.models.precision import in_float32

logger = logging.getLogger(__name__)
_AGREES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class ResponseStates:
    """Of the N response tokens of a batch that the policy chose: the hidden state before each, its
    id, and its place in [B·T] of the batch's `shape`. turns_BT: the batch's `response_turns`."""

    hidden_ND: Tensor
    ids_N: Tensor
    slots_N: Tensor
    shape: torch.Size
    turns_BT: Tensor | None = None

    @property
    def step_N(self) -> Tensor:
        """Which step of its response, or of its turn, each token is."""
        if self.turns_BT is None:
            return self.slots_N % self.shape[1]
        steps_BT = steps_in_turn(self.turns_BT).to(self.slots_N.device)
        return steps_BT.flatten().index_select(0, self.slots_N)

    def spread(self, x_N: Tensor) -> Tensor:
        """One number per token as [B, T], 0 in padding."""
        flat = x_N.new_zeros(self.shape.numel()).index_copy(0, self.slots_N, x_N)
        return flat.view(self.shape)


def response_states(trunk: nn.Module, inputs: dict[str, Tensor]) -> ResponseStates:
    """One forward of `trunk` over prompts and responses, which are best given on the CPU: how long
    they are decides what is computed."""
    inputs = {name: x.cpu() for name, x in inputs.items()}
    longest = int((inputs["prompt_lengths"] + inputs["response_lengths"]).max())
    nothing = not inputs["response_lengths"].any()
    if nothing or unsupported(trunk, longest) is not None:
        return _padded_states(trunk, inputs)
    decoder = architecture(trunk)
    if not _agrees(trunk, decoder):
        return _padded_states(trunk, inputs)
    return _ragged_states(
        decoder, inputs, partial(recomputed, trunk) if recomputes(trunk) else None
    )


@torch.no_grad()
def _agrees(trunk: nn.Module, decoder: Architecture) -> bool:
    """Whether the training forward gives what the trunk's own gives; looked at once, with two rows
    of different lengths."""
    if trunk not in _AGREES:
        ids = probe_ids(trunk, 2, 6)
        inputs = {
            "prompt_ids": ids[:, :3],
            "prompt_lengths": torch.tensor([3, 1]),
            "response_ids": ids[:, 3:],
            "response_lengths": torch.tensor([2, 3]),
        }
        with in_float32(trunk):
            ours, theirs = _ragged_states(decoder, inputs), _padded_states(trunk, inputs)
        found = deviation(ours.hidden_ND, theirs.hidden_ND)
        _AGREES[trunk] = found <= TOLERANCE
        if not _AGREES[trunk]:
            logger.info(
                "learning with the model's own forward, which is slower, because hidden states of "
                "lmpg's deviate from it by %.2g",
                found,
            )
    return _AGREES[trunk]


def _ragged_states(
    decoder: Architecture, inputs: dict[str, Tensor], run: Run | None = None
) -> ResponseStates:
    ragged = Ragged.of(inputs).to(decoder.embedding.weight.device)
    shape, turns_BT = inputs["response_ids"].shape, inputs.get("response_turns")
    hidden_MD = hidden_states(decoder, ragged, run)
    return ResponseStates(hidden_MD, ragged.id_M, ragged.slot_M, shape, turns_BT)


def _padded_states(trunk: nn.Module, inputs: dict[str, Tensor]) -> ResponseStates:
    rows = trimmed(inputs)
    response_BT = rows["response_ids"]
    num_steps = response_BT.shape[1]
    row_N, step_N = chosen_steps(rows).nonzero(as_tuple=True)
    shape = inputs["response_ids"].shape
    device = next(trunk.parameters()).device
    left = bears_padding(trunk)
    arguments = forward_arguments(rows, left)
    width = arguments["input_ids"].shape[1]
    prompt_B = rows["prompt_lengths"]  # columns of the prompt, with padding
    if left:
        prompt_B = torch.full_like(prompt_B, rows["prompt_ids"].shape[1])
    with quick_attention(trunk, width), layers_recomputed(trunk):
        moved = {n: uploaded(x, device) for n, x in accepted(trunk, arguments).items()}
        hidden_BLD = trunk(**moved, use_cache=False).last_hidden_state
    place_N = row_N * width + prompt_B[row_N] - 1 + step_N
    ids_N = response_BT.flatten().index_select(0, row_N * num_steps + step_N)
    slots_N = row_N * shape[1] + step_N
    return ResponseStates(
        # index_select, not x[index]: its backward is deterministic
        hidden_BLD.flatten(0, 1).index_select(0, place_N.to(device)),
        ids_N.to(device),
        slots_N.to(device),
        shape,
        inputs.get("response_turns"),
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
    ids_BT, lengths_B = inputs["response_ids"], inputs["response_lengths"]
    longer = {
        "response_ids": torch.cat([ids_BT, torch.zeros_like(ids_BT[:, :1])], 1),
        "response_lengths": lengths_B + 1,
    }
    if "response_turns" in inputs:  # as if the policy chose it
        turns_BT = F.pad(inputs["response_turns"], (0, 1))
        longer["response_turns"] = turns_BT.scatter(1, lengths_B[:, None], 1)
    return {**inputs, **longer}
