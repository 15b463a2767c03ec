"""How a policy's next-token distributions are computed: fused, or by its model's own forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from lmpg.models.fused_trunk import FusedTrunk, moved
from lmpg.models.fused_weights import (
    FusedWeights,
    Linear,
    fused_weights,
    output_layer,
    why_not_fused,
)
from lmpg.models.inputs import mask_and_positions
from lmpg.models.policy import CausalLMPolicy
from lmpg.sampling.decoding import Engine, Trunk


class ModelTrunk:
    """The model's own trunk with a cache of transformers: right for any causal language model."""

    def __init__(self, policy: CausalLMPolicy):
        self._trunk, self._last_position = policy.trunk, policy.context_length - 1
        self._cache: Any = DynamicCache(config=policy.causal_lm.config)
        # ALiBi and recurrent models take none
        self._takes_positions = "position_ids" in inspect.signature(self._trunk.forward).parameters

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts (padded left) and opens a row for each entry of prompt_R, [R, D]."""
        width = ids_PL.shape[1]
        end_P = torch.full_like(lengths_P, width)
        mask_PL, positions_PL = mask_and_positions(end_P - lengths_P, end_P, width)
        hidden_PLD = self._forward(ids_PL, mask_PL, positions_PL)
        self._cache.reorder_cache(prompt_R)
        self._position_R = lengths_P.index_select(0, prompt_R)
        self._mask_RL = mask_PL.index_select(0, prompt_R)
        return hidden_PLD[:, -1].index_select(0, prompt_R)

    def advance(self, tokens_R: Tensor) -> Tensor:
        """Appends a token to each row, [R, D]."""
        # a finished row that has not left yet must not run out of the model's positions
        positions_R = self._position_R.clamp(max=self._last_position)
        self._position_R = self._position_R + 1
        self._mask_RL = F.pad(self._mask_RL, (0, 1), value=1)
        return self._forward(tokens_R[:, None], self._mask_RL, positions_R[:, None])[:, -1]

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`, the first num_rows go on."""
        order_R = torch.arange(len(self._position_R), device=holes.device)
        order_R = moved(order_R, holes, tail, num_rows)
        self._cache.reorder_cache(order_R)
        self._position_R = self._position_R.index_select(0, order_R)
        self._mask_RL = self._mask_RL.index_select(0, order_R)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        arguments = {"input_ids": ids, "attention_mask": mask}
        if self._takes_positions:
            arguments["position_ids"] = positions
        output = self._trunk(**arguments, past_key_values=self._cache, use_cache=True)
        return output.last_hidden_state


def general_engine(policy: CausalLMPolicy) -> Engine:
    """The model's forward in the policy's precision."""
    values = None if policy.value_head is None else policy.values
    return Engine(ModelTrunk(policy), policy.head.logits, values, policy.autocast, 1 / 16)


@dataclass(frozen=True)
class FusedParts:
    """A policy's weights of one moment, as the fused trunk reads them; its head's product is in
    their precision, `factor` is what temperature multiplies hidden states by."""

    weights: FusedWeights
    head: Linear
    factor: float
    value_head: nn.Linear | None

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V], float32, temperature applied."""
        scaled_RD = hidden_RD if self.factor == 1 else hidden_RD * self.factor
        return self.head(scaled_RD.to(self.weights.dtype)).float()

    @property
    def values(self) -> Callable[[Tensor], Tensor] | None:
        """V [R] of hidden states, where the critic shares the trunk."""
        head = self.value_head
        return None if head is None else lambda hidden_RD: head(hidden_RD)[:, 0]


def fused_parts(policy: CausalLMPolicy, length: int) -> FusedParts:
    """Read from a policy, for contexts of `length`."""
    model: Any = policy.causal_lm
    dtype = torch.bfloat16 if policy.bf16 else model.get_input_embeddings().weight.dtype
    factor = 1 / policy.temperature
    head = output_layer(model, dtype, factor)
    return FusedParts(fused_weights(model, length, dtype), head, factor, policy.value_head)


def fused_engine(
    policy: CausalLMPolicy, length: int, trunk: Callable[[FusedWeights, int], Trunk] = FusedTrunk
) -> Engine:
    """A fused trunk over the model's weights of this moment, for contexts of `length`."""
    parts = fused_parts(policy, length)
    return Engine(trunk(parts.weights, length), parts.logits, parts.values, nullcontext, 0.0)


def why_general(policy: CausalLMPolicy, length: int) -> str | None:
    """Why the fused engine cannot serve a policy in contexts of `length`; None if it can."""
    return why_not_fused(policy.causal_lm, length)


def fused_deviation(
    policy: CausalLMPolicy, trunk: Callable[[FusedWeights, int], Trunk] = FusedTrunk
) -> float:
    """How far a fused trunk's hidden states are from the model's own, as a share of their size,
    after a few tokens of two prompts of different lengths."""
    length = min(policy.context_length, 8)
    steps = length // 2
    model: Any = policy.causal_lm
    vocabulary = len(model.get_input_embeddings().weight)
    ids_RL = torch.arange(2 * length, device=policy.device).view(2, -1) * 7919 % vocabulary
    lengths = torch.tensor([length - steps, 1], device=policy.device)
    rows = torch.arange(2, device=policy.device)
    found = []
    for engine in (general_engine(policy), fused_engine(policy, length, trunk)):
        with torch.no_grad(), engine.precision():
            hidden = [engine.trunk.prefill(ids_RL[:, :-steps], lengths, rows)]
            hidden += [engine.trunk.advance(ids) for ids in ids_RL[:, -steps:].T]
        found.append(torch.stack(hidden).float())
    return float((found[1] - found[0]).norm() / found[0].norm())
