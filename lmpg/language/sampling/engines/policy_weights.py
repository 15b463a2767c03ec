"""A policy's weights of one moment: its decoder's, its head's and its value head's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmpg.functional.logprobs import LogitShape
from lmpg.language.models.decoder_parts import in_use
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.linear import linear
from lmpg.language.sampling.engines.weights import DecodeWeights, Linear, Settle, decode_weights
from lmpg.runtime.sharding import held


@dataclass(frozen=True)
class PolicyWeights:
    """A policy's weights of one moment; its head's product is in their precision."""

    decoder: DecodeWeights
    head: Linear
    shape: LogitShape
    value_head: list[Tensor] | None

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V], float32, temperature applied."""
        shape, dtype = self.shape, self.decoder.dtype
        if shape.softcap is not None:
            return shape.logits(self.head(hidden_RD.to(dtype)))
        scaled_RD = hidden_RD if shape.factor == 1 else hidden_RD * shape.factor
        return shape.possible(self.head(scaled_RD.to(dtype)).float())

    @property
    def values(self) -> Callable[[Tensor], Tensor] | None:
        """V [R] of hidden states, where the critic shares the trunk."""
        head = self.value_head
        return None if head is None else lambda hidden_RD: F.linear(hidden_RD, *head)[:, 0]


def policy_weights(
    policy: CausalLMPolicy, length: int, settle: Settle = lambda _, part: part
) -> PolicyWeights:
    """The weights of `policy` as they are now, for contexts of `length` tokens."""
    with held(policy):
        return _policy_weights(policy, length, settle)


def _policy_weights(policy: CausalLMPolicy, length: int, settle: Settle) -> PolicyWeights:
    model: Any = policy.causal_lm
    kept = model.get_input_embeddings().weight.dtype
    dtype = torch.bfloat16 if policy.bf16 else torch.promote_types(kept, torch.float32)
    shape = policy.head.shape
    # without a softcap all factors of the logits are one, of the hidden states and of the bias
    head = _head_weights(model, dtype, 1.0 if shape.softcap is not None else shape.factor)
    head = settle(-1, head)
    decoder = decode_weights(model, length, dtype, settle)
    value_head = policy.value_head
    values = None if value_head is None else [x.detach() for x in value_head.parameters()]
    return PolicyWeights(decoder, head, shape, values)


def _head_weights(model: Any, dtype: torch.dtype, factor: float) -> Linear:
    """The model's head; its bias, which is not multiplied with the input, times `factor`."""
    head = in_use(model.get_output_embeddings())
    bias = None if head.bias is None else head.bias.detach() * factor
    return linear(head.weight.detach().to(dtype), None if bias is None else bias.to(dtype))
