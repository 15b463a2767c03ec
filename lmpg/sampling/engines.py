"""How a policy's next-token distributions are computed: fused, or by its model's own forward."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from lmpg.models.fused_trunk import FusedTrunk, moved
from lmpg.models.fused_weights import fused_weights, output_layer, why_not_fused
from lmpg.models.inputs import mask_and_positions
from lmpg.models.policy import CausalLMPolicy
from lmpg.sampling.decoding import Engine


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


def fused_engine(policy: CausalLMPolicy, length: int) -> Engine:
    """The fused trunk over the model's weights of this moment, for contexts of `length`."""
    model: Any = policy.causal_lm
    embedding = model.get_input_embeddings().weight
    dtype = torch.bfloat16 if policy.bf16 else embedding.dtype
    trunk = FusedTrunk(fused_weights(model, length, dtype), length)
    factor = 1 / policy.temperature
    head = output_layer(model, dtype, factor)
    value_head = policy.value_head

    def logits(hidden_RD: Tensor) -> Tensor:
        scaled_RD = hidden_RD if factor == 1 else hidden_RD * factor
        return head(scaled_RD.to(dtype)).float()

    def values(hidden_RD: Tensor) -> Tensor:
        assert value_head is not None
        return value_head(hidden_RD)[:, 0]

    return Engine(trunk, logits, None if value_head is None else values, nullcontext, 0.0)


def why_general(policy: CausalLMPolicy, length: int) -> str | None:
    """Why the fused engine cannot serve a policy in contexts of `length`; None if it can."""
    return why_not_fused(policy.causal_lm, length)


def fused_deviation(policy: CausalLMPolicy) -> float:
    """How far the fused trunk's hidden states are from the model's own, as a share of their size,
    after a few tokens of two prompts of different lengths."""
    length = min(policy.context_length, 8)
    steps = length // 2
    model: Any = policy.causal_lm
    vocabulary = len(model.get_input_embeddings().weight)
    ids_RL = torch.arange(2 * length, device=policy.device).view(2, -1) * 7919 % vocabulary
    lengths = torch.tensor([length - steps, 1], device=policy.device)
    rows = torch.arange(2, device=policy.device)
    found = []
    for engine in (general_engine(policy), fused_engine(policy, length)):
        with torch.no_grad(), engine.precision():
            hidden = [engine.trunk.prefill(ids_RL[:, :-steps], lengths, rows)]
            hidden += [engine.trunk.advance(ids) for ids in ids_RL[:, -steps:].T]
        found.append(torch.stack(hidden).float())
    return float((found[1] - found[0]).norm() / found[0].norm())
