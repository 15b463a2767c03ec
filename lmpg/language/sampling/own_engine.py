"""lmpg's engine over a policy's weights, and how far it is from the model itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from lmpg.language.models.architectures import deviation, probe_ids
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.cpu import CpuDecoder
from lmpg.language.sampling.engines.policy_weights import PolicyWeights, policy_weights
from lmpg.language.sampling.engines.protocol import Decoder, Engine
from lmpg.language.sampling.engines.transformers import transformers_engine
from lmpg.language.sampling.engines.weights import DecodeWeights

NewDecoder = Callable[[DecodeWeights, int], Decoder]
"""A decoder over weights, for contexts of so many tokens."""
_PROBED = 8
"""Tokens of the texts on which an engine is tried."""


def own_engine(
    policy: CausalLMPolicy,
    length: int,
    decoder: NewDecoder = CpuDecoder,
    weights: PolicyWeights | None = None,
) -> Engine:
    """lmpg's decoder for contexts of `length` tokens, over the model's weights of this moment if
    none are given."""
    weights = weights or policy_weights(policy, length)
    new = decoder(weights.decoder, length)
    return Engine(new, weights.logits, weights.values, nullcontext, 0.0)


@torch.no_grad()
def engine_deviation(policy: CausalLMPolicy, decoder: NewDecoder = CpuDecoder) -> float:
    """How far a decoder's hidden states, in the policy's precision, are from transformers' in
    float32."""
    length = min(policy.context_length, _PROBED)
    ours = _hidden_after_steps(policy, own_engine(policy, length, decoder))
    with policy.in_float32():
        return deviation(ours, _hidden_after_steps(policy, transformers_engine(policy)))


@torch.no_grad()
def own_rounding(policy: CausalLMPolicy) -> float:
    """How far transformers' own hidden states, in the policy's precision, are from those in
    float32."""
    if not policy.bf16 and policy.device.type == "cpu":
        return 0.0
    rounded = _hidden_after_steps(policy, transformers_engine(policy))
    with policy.in_float32():
        return deviation(rounded, _hidden_after_steps(policy, transformers_engine(policy)))


def _hidden_after_steps(policy: CausalLMPolicy, engine: Engine) -> Tensor:
    """Hidden states after a few tokens of two prompts of different lengths."""
    length = min(policy.context_length, _PROBED)
    steps = length // 2
    ids_RL = probe_ids(policy.causal_lm, 2, length).to(policy.device)
    lengths = torch.tensor([length - steps, 1], device=policy.device)
    rows = torch.arange(2, device=policy.device)
    with engine.precision():
        hidden = [engine.decoder.prefill(ids_RL[:, :-steps], lengths, rows)]
        hidden += [engine.decoder.advance(ids) for ids in ids_RL[:, -steps:].T]
    return torch.stack(hidden)
