"""The states that the tokens of a response are chosen in, as a trunk sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmpg.models.inputs import accepted, forward_arguments, trimmed


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
    """One forward of `trunk` over prompts and responses."""
    rows = trimmed(inputs)
    response_BT, lengths_B = rows["response_ids"], rows["response_lengths"]
    num_steps = response_BT.shape[1]
    output = trunk(**accepted(trunk, forward_arguments(rows)), use_cache=False)
    hidden_BTD = output.last_hidden_state[:, -num_steps:]
    step_T = torch.arange(num_steps, device=lengths_B.device)
    row_N, step_N = (step_T < lengths_B[:, None]).nonzero(as_tuple=True)
    # index_select, not x[index]: its backward is deterministic
    flat_N = row_N * num_steps + step_N
    shape = inputs["response_ids"].shape
    return ResponseStates(
        hidden_BTD.flatten(0, 1).index_select(0, flat_N),
        response_BT.flatten().index_select(0, flat_N),
        row_N * shape[1] + step_N,
        shape,
    )


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
