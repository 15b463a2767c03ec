"""How a policy's next-token distributions are computed: fused, or by its model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.cpu import FusedTrunk
from lmpg.language.sampling.engines.protocol import Engine, Trunk
from lmpg.language.sampling.engines.transformers import general_engine
from lmpg.language.sampling.engines.weights import (
    FusedWeights,
    Linear,
    fused_weights,
    output_layer,
    why_not_fused,
)


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
