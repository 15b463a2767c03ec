"""The engine for any causal language model: its own forward, with a cache of transformers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, RecurrentGemmaModel

from lmpg.language.models.inputs import mask_and_positions, moved
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.caches import OwnStates, kept, reordered, rwkv_step
from lmpg.language.sampling.engines.protocol import Engine
from lmpg.settings.section import UserError


class TransformersDecoder:
    """A model's own forward, token by token, with the cache that it makes itself; right for any
    causal language model whose prompts are not padded, see `bears_padding`, or may be."""

    def __init__(self, policy: CausalLMPolicy):
        self._trunk, self._last_position = policy.trunk, policy.context_length - 1
        self._cache: dict[str, Any] = {}
        self._states: OwnStates | None = None
        if type(self._trunk) is RecurrentGemmaModel:
            self._states = OwnStates(self._trunk)
            self._cache = {"past_key_values": DynamicCache(config=self._trunk.config)}
        self._takes = inspect.signature(self._trunk.forward).parameters

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts (padded left) and opens a row for each entry of prompt_R, [R, D]."""
        width = ids_PL.shape[1]
        end_P = torch.full_like(lengths_P, width)
        mask_PL, positions_PL = mask_and_positions(end_P - lengths_P, end_P, width)
        hidden_PLD = self._forward(ids_PL, mask_PL, positions_PL)
        self._reorder(prompt_R)
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
        self._reorder(order_R)
        self._position_R = self._position_R.index_select(0, order_R)
        self._mask_RL = self._mask_RL.index_select(0, order_R)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        if "state" in self._takes and ids.shape[1] == 1:
            hidden, state = rwkv_step(self._trunk, ids, self._cache.get("state"))
            self._cache = {"state": state}
            return hidden
        arguments = {"input_ids": ids}
        if not self._cache or "past_key_values" in self._cache:  # else no token sees padding again
            arguments["attention_mask"] = mask
        if "position_ids" in self._takes:  # ALiBi and recurrent models take none
            arguments["position_ids"] = positions
        output = self._trunk(**arguments, **self._cache, use_cache=True)
        self._cache = kept(output) or self._cache
        if not self._cache:
            raise UserError(
                f"model.path: {type(self._trunk).__name__} keeps nothing between tokens, expected "
                "a causal language model that need not read its whole text again for each; choose "
                "another"
            )
        return output.last_hidden_state

    def _reorder(self, order_R: Tensor) -> None:
        """The rows of the cache, in this order."""
        self._cache = {name: reordered(cache, order_R) for name, cache in self._cache.items()}
        if self._states is not None:
            self._states.reorder(order_R)


def transformers_engine(policy: CausalLMPolicy) -> Engine:
    """The engine that computes with the model's own forward, in the policy's precision."""
    values = None if policy.value_head is None else policy.values
    decoder = TransformersDecoder(policy)
    return Engine(decoder, policy.head.logits, values, policy.autocast, 1 / 16)
