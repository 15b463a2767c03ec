"""The engine for any causal language model: its own forward, with a cache of transformers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from lmpg.language.models.inputs import mask_and_positions, moved
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.protocol import Engine


class TransformersDecoder:
    """A model's own forward, token by token; right for any causal language model."""

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
        """Appends a token to each row; hidden [R, D] after it."""
        # a finished row that has not left yet must not run out of the model's positions
        positions_R = self._position_R.clamp(max=self._last_position)
        self._position_R = self._position_R + 1
        self._mask_RL = F.pad(self._mask_RL, (0, 1), value=1)
        return self._forward(tokens_R[:, None], self._mask_RL, positions_R[:, None])[:, -1]

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """Moves the rows `tail` to the places `holes`; the first num_rows go on."""
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


def transformers_engine(policy: CausalLMPolicy) -> Engine:
    """The engine that computes with the model's own forward, in the policy's precision."""
    values = None if policy.value_head is None else policy.values
    decoder = TransformersDecoder(policy)
    return Engine(decoder, policy.head.logits, values, policy.autocast, 1 / 16)
