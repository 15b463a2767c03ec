"""The engine for any causal language model: its own forward, with a cache of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, RwkvModel
from transformers.cache_utils import DynamicLayer

from lmpg.language.models.architectures import TOLERANCE, deviation, probe_ids
from lmpg.language.models.forward.readable import refusing
from lmpg.language.models.inputs import accepted, mask_and_positions, moved, read_together
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.caches import (
    MASK_OF_NEW_TOKENS,
    is_of_attention_alone,
    joined,
    kept,
    layers_with_states,
    named,
    reorder_layers,
    reordered,
    rwkv_step,
)
from lmpg.language.sampling.engines.protocol import Engine
from lmpg.language.sampling.engines.stored import Stored, Unread
from lmpg.settings.section import UserError


class TransformersDecoder:
    """A model's own forward, token by token, with the cache that it makes itself; right for any
    causal language model whose prompts are not padded, see `bears_padding`, or may be."""

    def __init__(self, policy: CausalLMPolicy):
        self._trunk, self._last_position = policy.trunk, policy.context_length - 1
        self._cache: dict[str, Any] = {}
        self._layers = layers_with_states(self._trunk)
        if self._layers:  # such a model does not return the cache of its other layers
            self._cache = named(self._trunk, DynamicCache(config=policy.causal_lm.config))
        self._is_rwkv = type(self._trunk) is RwkvModel
        self._masks_new = policy.causal_lm.config.model_type in MASK_OF_NEW_TOKENS

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts (padded left) and opens a row for each entry of prompt_R, [R, D]."""
        width = ids_PL.shape[1]
        end_P = torch.full_like(lengths_P, width)
        mask_PL, positions_PL = mask_and_positions(end_P - lengths_P, end_P, width)
        hidden_PD = self._read(ids_PL, mask_PL, positions_PL)
        self._reorder(prompt_R)
        self._position_R = lengths_P.index_select(0, prompt_R)
        self._mask_RL = mask_PL.index_select(0, prompt_R)
        return hidden_PD.index_select(0, prompt_R)

    def _read(self, *texts: Tensor) -> Tensor:
        """Hidden states after prompts [P, D], some of them at a time where their caches can be put
        together."""
        parts = read_together(texts[0])
        if len(parts) > 1 and not self._layers:
            hidden: list[Tensor] = []
            caches: list[Any] = []
            for part in parts:
                self._cache = {}
                hidden.append(self._forward(*(x[part] for x in texts))[:, -1])
                caches.append(next(iter(self._cache.values())))
                if len(self._cache) > 1 or not is_of_attention_alone(caches[0]):
                    break
            else:
                self._cache = dict.fromkeys(self._cache, joined(caches))
                return torch.cat(hidden)
            self._cache = {}
        return self._forward(*texts)[:, -1]

    def go_on(self, unread: Unread) -> Tensor:
        """Opens a row for each text, of which only the tokens that are not stored are read; hidden
        [R, D] after each.

        What is stored ends in one column, new tokens in the last one; between them is padding.
        """
        most, new, device = max(unread.known), unread.new, unread.ids_RM.device
        known_R1 = torch.tensor(unread.known, device=device)[:, None]
        cache, ends = DynamicCache(), [most] * len(unread.known)
        for i, like in enumerate(unread.stored[0]):
            _, heads, _, size = like.shape
            whole = like.new_zeros(2, len(ends), heads, most, size)
            unread.place(whole, i, ends)
            cache.update(whole[0], whole[1], i)
        self._cache = named(self._trunk, cache)
        column_L = torch.arange(most + new, device=device)
        is_stored = (column_L < most) & (column_L >= most - known_R1)
        self._mask_RL = (is_stored | (column_L >= most + new - unread.new_R[:, None])).long()
        self._position_R = unread.lengths_R
        positions_RM = unread.lengths_R[:, None] - new + torch.arange(new, device=device)
        return self._forward(unread.ids_RM, self._mask_RL, positions_RM.clamp(min=0))[:, -1]

    def stored(self, places: list[int]) -> list[Stored] | None:
        """What is cached of the rows in `places`; None where a layer does not keep all tokens."""
        cache = next(iter(self._cache.values()), None)
        layers: list[Any] = cache.layers if type(cache) is DynamicCache else []
        if set(map(type, layers)) != {DynamicLayer}:
            return None
        found = []
        for place in places:
            columns = self._mask_RL[place].nonzero()[:, 0]
            pairs = [torch.stack([x.keys[place], x.values[place]]) for x in layers]
            found.append([pair.index_select(2, columns) for pair in pairs])
        return found

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
        if self._is_rwkv and ids.shape[1] == 1:
            hidden, state = rwkv_step(self._trunk, ids, self._cache.get("state"))
            self._cache = {"state": state}
            return hidden
        arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        if self._cache and self._masks_new:
            arguments.pop("attention_mask")  # of one token, which is no padding
        arguments = accepted(self._trunk, arguments)
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
        reorder_layers(self._layers, order_R)


def transformers_engine(policy: CausalLMPolicy) -> Engine:
    """The engine that computes with the model's own forward, in the policy's precision."""
    values = None if policy.value_head is None else policy.values
    decoder = TransformersDecoder(policy)
    return Engine(decoder, policy.head.logits, values, policy.autocast, 1 / 16)


@torch.no_grad()
def refuse_unusable_cache(policy: CausalLMPolicy) -> None:
    """UserError unless the model gives, token by token and with rows that move, the hidden states
    that it gives for whole texts."""
    ids_RL = probe_ids(policy.causal_lm, 2, min(policy.context_length, 8)).to(policy.device)
    with refusing(policy, "texts that go on token by token"):
        with policy.autocast():
            _hidden_after_steps(policy, ids_RL)
        with policy.in_float32():
            whole = policy.trunk(input_ids=ids_RL).last_hidden_state
            found = _hidden_after_steps(policy, ids_RL)
    off = deviation(found, whole.flip(0)[:, -found.shape[1] :])
    if not off <= TOLERANCE:
        raise UserError(
            f"model.path: what {type(policy.causal_lm).__name__} keeps between tokens does not "
            f"give what its plain forward gives (hidden states deviate by {off:.2g}), expected a "
            "causal language model that samples what it learns from; choose another"
        )


def _hidden_after_steps(policy: CausalLMPolicy, ids_RL: Tensor) -> Tensor:
    """Of the second text and the first, before and after each of their last tokens."""
    decoder = TransformersDecoder(policy)
    first, rest = ids_RL.split([ids_RL.shape[1] // 2, -(-ids_RL.shape[1] // 2)], 1)
    device = ids_RL.device
    lengths = torch.full((2,), first.shape[1], device=device)
    # the second text has two rows, of which the last takes the place of the first
    hidden = [decoder.prefill(first, lengths, torch.tensor([1, 0, 1], device=device))[:2]]
    decoder.keep(torch.tensor([0], device=device), torch.tensor([2], device=device), 2)
    hidden += [decoder.advance(ids_R) for ids_R in rest.flip(0).T]
    return torch.stack(hidden, 1)
