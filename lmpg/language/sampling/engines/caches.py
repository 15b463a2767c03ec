"""What models of transformers keep between the tokens of a text, and rows that move within it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, RecurrentGemmaModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lmpg.language.models.inputs import takes

NAMES = ("cache", "past_key_values", "cache_params", "state")
"""What models call it: any since transformers 5.24; before, of attention, and of Mamba and its
like; of RWKV."""
_OF_ATTENTION = (
    {DynamicLayer},
    {DynamicSlidingWindowLayer},
    {DynamicLayer, DynamicSlidingWindowLayer},
)
MASK_OF_NEW_TOKENS = ("falcon_mamba", "mamba", "mamba2", "xlstm")
"""Model types whose attention mask is of the tokens that they read now, without those before."""


def kept(output: Any) -> dict[str, Any]:
    """What a forward returned to be given to the next, under its name; {} if nothing."""
    return {name: cache for name, cache in output.items() if name in NAMES}


def named(trunk: Any, cache: Any) -> dict[str, Any]:
    """A cache of attention, under the name that the model's forward takes it by."""
    return {"cache" if takes(trunk, "cache") else "past_key_values": cache}


def reordered(cache: Any, order_R: Tensor) -> Any:
    """A cache with the rows that `order_R` names; it may be the same, changed."""
    if isinstance(cache, list):  # RWKV's
        return [x.index_select(0, order_R) for x in cache]
    if hasattr(cache, "rnn_state"):  # xLSTM's
        states = cache.rnn_state.items()
        cache.rnn_state = {i: tuple(x.index_select(0, order_R) for x in xs) for i, xs in states}
        return cache
    cache.reorder_cache(order_R)
    if hasattr(cache, "linear_cache"):  # MiniMax's, which leaves these out; [] where there is none
        found = cache.linear_cache
        cache.linear_cache = [x.index_select(0, order_R) if len(x) else x for x in found]
    return cache


def is_of_attention_alone(cache: Any) -> bool:
    """Whether all that it holds are keys and values, so that `joined` can put rows together."""
    layers: list[Any] = cache.layers if type(cache) is DynamicCache else []
    return {*map(type, layers)} in _OF_ATTENTION


def joined(caches: list[Any]) -> Any:
    """The rows of several caches of attention in the first of them; the others are empty then."""
    for first, *others in zip(*(cache.layers for cache in caches)):
        if first.is_initialized:
            first.keys = torch.cat([first.keys, *(x.keys for x in others)])
            first.values = torch.cat([first.values, *(x.values for x in others)])
        for other in others:
            other.keys = other.values = None
    return caches[0]


def layers_with_states(trunk: Any) -> list[Any]:
    """The recurrent layers of RecurrentGemma, which keep their states themselves, once they have
    forgotten the text before; [] of other models."""
    if type(trunk) is not RecurrentGemmaModel:
        return []
    blocks: list[Any] = [layer.temporal_block for layer in trunk.layers]
    found = [block for block in blocks if hasattr(block, "rg_lru")]
    for block in found:
        block.conv1d_state = block.rg_lru.recurrent_states = None
    return found


def reorder_layers(layers: list[Any], order_R: Tensor) -> None:
    """What `reordered` does, for layers with states of their own."""
    for block in layers:
        block.conv1d_state = block.conv1d_state.index_select(0, order_R)
        block.rg_lru.recurrent_states = block.rg_lru.recurrent_states.index_select(0, order_R)


def rwkv_step(trunk: Any, ids_R1: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list]:
    """RWKV's hidden states [R, 1, D] after one more token of each row, and its state.

    Its own forward mixes up the rows of a step that has several, so each is computed as if it were
    alone.
    """
    if state is None:
        alone = [trunk(input_ids=ids_11, use_cache=True) for ids_11 in ids_R1.split(1)]
        states = [torch.cat(parts) for parts in zip(*(output.state for output in alone))]
        return torch.cat([output.last_hidden_state for output in alone]), states

    def step(ids_1: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output = trunk(input_ids=ids_1[None], state=[x[None] for x in state], use_cache=True)
        return output.last_hidden_state[0], *(x[0] for x in output.state)

    hidden_R1D, *after = torch.vmap(step)(ids_R1, *state)
    return hidden_R1D, after
