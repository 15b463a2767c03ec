"""Which engine computes a policy's next-token distributions: lmpg's own, or transformers'."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.functional.logprobs import LogitShape
from lmpg.language.models.architectures import deviation, probe_ids, unsupported
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.cpu import CpuDecoder
from lmpg.language.sampling.engines.protocol import Decoder, Engine
from lmpg.language.sampling.engines.transformers import transformers_engine
from lmpg.language.sampling.engines.weights import (
    DecodeWeights,
    Linear,
    decode_weights,
    head_weights,
    unreadable_layers,
)

NewDecoder = Callable[[DecodeWeights, int], Decoder]
"""A decoder over weights, for contexts of so many tokens."""


@dataclass(frozen=True)
class PolicyWeights:
    """A policy's weights of one moment; its head's product is in their precision."""

    decoder: DecodeWeights
    head: Linear
    shape: LogitShape
    value_head: nn.Linear | None

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V], float32, temperature applied."""
        shape, dtype = self.shape, self.decoder.dtype
        if shape.softcap is not None:
            return shape.logits(self.head(hidden_RD.to(dtype)))
        scaled_RD = hidden_RD if shape.factor == 1 else hidden_RD * shape.factor
        return self.head(scaled_RD.to(dtype)).float()

    @property
    def values(self) -> Callable[[Tensor], Tensor] | None:
        """V [R] of hidden states, where the critic shares the trunk."""
        head = self.value_head
        return None if head is None else lambda hidden_RD: head(hidden_RD)[:, 0]


def policy_weights(policy: CausalLMPolicy, length: int) -> PolicyWeights:
    """The weights of `policy` as they are now, for contexts of `length` tokens."""
    model: Any = policy.causal_lm
    dtype = torch.bfloat16 if policy.bf16 else model.get_input_embeddings().weight.dtype
    shape = policy.head.shape
    # without a softcap all factors of the logits are one, of the hidden states and of the bias
    head = head_weights(model, dtype, 1.0 if shape.softcap is not None else shape.factor)
    return PolicyWeights(decode_weights(model, length, dtype), head, shape, policy.value_head)


def own_engine(policy: CausalLMPolicy, length: int, decoder: NewDecoder = CpuDecoder) -> Engine:
    """lmpg's decoder over the model's weights of this moment, for contexts of `length` tokens."""
    weights = policy_weights(policy, length)
    new = decoder(weights.decoder, length)
    return Engine(new, weights.logits, weights.values, nullcontext, 0.0)


def why_transformers(policy: CausalLMPolicy, length: int) -> str | None:
    """Why transformers must compute a policy in contexts of `length` tokens; None if lmpg can."""
    return unsupported(policy.causal_lm, length) or unreadable_layers(policy.causal_lm)


@torch.no_grad()
def engine_deviation(policy: CausalLMPolicy, decoder: NewDecoder = CpuDecoder) -> float:
    """How far a decoder's hidden states are from transformers', after a few tokens of two prompts
    of different lengths."""
    length = min(policy.context_length, 8)
    steps = length // 2
    ids_RL = probe_ids(policy.causal_lm, 2, length).to(policy.device)
    lengths = torch.tensor([length - steps, 1], device=policy.device)
    rows = torch.arange(2, device=policy.device)
    found = []
    for engine in (own_engine(policy, length, decoder), transformers_engine(policy)):
        with engine.precision():
            hidden = [engine.decoder.prefill(ids_RL[:, :-steps], lengths, rows)]
            hidden += [engine.decoder.advance(ids) for ids in ids_RL[:, -steps:].T]
        found.append(torch.stack(hidden))
    return deviation(*found)
