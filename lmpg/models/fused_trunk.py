"""A decoder's forward for sampling: functional code over `FusedWeights` with a preallocated cache.

Letters beyond the legend: N tokens (a step's rows, or all of a prefill), H heads of queries, K
heads of keys and values, E numbers of a head, D hidden size. The residual stream, norms, attention
and cache are float32 whatever the precision of the products: with one query per row, products of
bfloat16 are slower than those of float32 on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.models.fused_weights import FusedWeights, Layer, Norm
from lmpg.models.inputs import mask_and_positions


class FusedTrunk:
    """Hidden states after the last token of R rows: `prefill` once, then `advance` token by token.

    The rows still going lie in the first R places of the cache; `keep` moves rows into the places
    of those that leave, so that leaving costs one row's copy.
    """

    def __init__(self, weights: FusedWeights):
        self._weights = weights

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor, steps: int) -> Tensor:
        """Reads prompts (padded left) and opens a row for each entry of prompt_R, with room for
        `steps` more tokens; hidden [R, D] after each row's prompt."""
        w, shape_PL = self._weights, ids_PL.shape
        self._position_R = lengths_P.index_select(0, prompt_R)
        self._columns, self._rows = shape_PL[1], len(prompt_R)
        room = shape_PL[1] + steps
        table = w.position_embedding if w.rotations is None else w.rotations
        assert table is not None
        self._last_position = len(table) - 1
        cache_shape = (len(w.layers), self._rows, w.num_groups, 2, room, w.head_dim)
        self._cache = torch.empty(cache_shape, device=ids_PL.device)
        end_P = torch.full_like(lengths_P, shape_PL[1])
        mask_PL, position_PL = mask_and_positions(end_P - lengths_P, end_P, shape_PL[1])
        self._bias_RL: Tensor | None = None
        if not bool(mask_PL.all()):
            self._bias_RL = _padding_bias(mask_PL, room).index_select(0, prompt_R)
        stream = self._embedded(ids_PL.flatten(), position_PL.flatten())
        rotations = self._rotations(position_PL.flatten())
        for i, layer in enumerate(w.layers):
            query, key, value = self._heads(layer, stream, rotations)
            query, key, value = (
                x.unflatten(0, shape_PL).transpose(1, 2) for x in (query, key, value)
            )
            self._cache[i, :, :, 0, : shape_PL[1]] = key.index_select(0, prompt_R)
            self._cache[i, :, :, 1, : shape_PL[1]] = value.index_select(0, prompt_R)
            mixed = _causal_attention(query, key, value, mask_PL, layer.scaling)
            stream = self._after_attention(layer, stream, mixed)
        last = stream.unflatten(0, shape_PL)[:, -1]
        return _normed(last, w.last_norm).index_select(0, prompt_R)

    def advance(self, tokens_R: Tensor) -> Tensor:
        """Appends a token to each row; hidden [R, D] after it."""
        stream = self._embedded(tokens_R, self._position_R)
        rotations = self._rotations(self._position_R)
        self._columns += 1
        bias = self._bias()
        for i, layer in enumerate(self._weights.layers):
            query, key, value = self._heads(layer, stream, rotations)
            mixed = self._attended(i, query, key, value, bias, layer.scaling)
            stream = self._after_attention(layer, stream, mixed)
        # a finished row that has not left yet must not run out of the model's positions
        self._position_R = (self._position_R + 1).clamp_(max=self._last_position)
        return _normed(stream, self._weights.last_norm)

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`; then the first num_rows alone go on."""
        if len(holes):
            filled = self._cache[:, :, :, :, : self._columns]
            filled.index_copy_(1, holes, filled.index_select(1, tail))
        self._position_R = moved(self._position_R, holes, tail, num_rows)
        if self._bias_RL is not None:
            self._bias_RL = moved(self._bias_RL, holes, tail, num_rows)
        self._rows = num_rows

    def _embedded(self, ids_N: Tensor, positions_N: Tensor) -> Tensor:
        w = self._weights
        stream = w.embedding.index_select(0, ids_N).float()
        if w.position_embedding is not None:
            stream = stream + w.position_embedding.index_select(0, positions_N)
        return stream

    def _rotations(self, positions_N: Tensor) -> Tensor | None:
        table = self._weights.rotations
        return None if table is None else table.index_select(0, positions_N)[:, None]

    def _bias(self) -> Tensor | None:
        """What is added to the scores [R·K, heads of a group, columns] of padding: −∞."""
        if self._bias_RL is None:
            return None
        bias_RL = self._bias_RL[:, : self._columns]
        return bias_RL.repeat_interleave(self._weights.num_groups, 0)[:, None]

    def _heads(
        self, layer: Layer, stream: Tensor, rotations: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, E], keys and values [N, K, E], normed and rotated where the model does."""
        w = self._weights
        normed = _normed(stream, layer.attention_norm).to(w.dtype)
        x = layer.qkv(normed).float().unflatten(1, (-1, w.head_dim))
        turned, value = x[:, : w.num_heads + w.num_groups], x[:, w.num_heads + w.num_groups :]
        if layer.head_norm_HD is not None:
            turned = F.rms_norm(turned, turned.shape[-1:], None, layer.head_eps)
            turned = turned.mul_(layer.head_norm_HD)
        if rotations is not None:
            pairs = torch.view_as_complex(turned.unflatten(2, (-1, 2)))
            turned = torch.view_as_real(pairs * rotations).flatten(2)
        return turned[:, : w.num_heads], turned[:, w.num_heads :], value

    def _attended(
        self,
        i: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attention of one query per row to its whole context, the new token included: [R, H·E]."""
        w, rows = self._weights, self._rows
        cache = self._cache[i, :rows]
        cache[:, :, 0, self._columns - 1] = key
        cache[:, :, 1, self._columns - 1] = value
        context = cache.view(rows * w.num_groups, 2, -1, w.head_dim)[:, :, : self._columns]
        grouped = query.reshape(rows * w.num_groups, -1, w.head_dim)
        zero = grouped.new_empty(1) if bias is None else bias
        beta = 0 if bias is None else 1
        scores = torch.baddbmm(
            zero, grouped, context[:, 0].transpose(1, 2), beta=beta, alpha=scaling
        )
        return torch.bmm(scores.softmax(-1), context[:, 1]).view(rows, -1)

    def _after_attention(self, layer: Layer, stream: Tensor, mixed: Tensor) -> Tensor:
        w = self._weights
        stream = layer.out.added_to(stream, mixed.to(w.dtype))
        normed = _normed(stream, layer.mlp_norm).to(w.dtype)
        inner = layer.gate.activated(normed, w.activation)
        if layer.up is not None:
            inner = layer.up.times(normed, inner)
        return layer.down.added_to(stream, inner)


def moved(x_R: Tensor, holes: Tensor, tail: Tensor, num_rows: int) -> Tensor:
    """The first num_rows of x, with the rows `tail` in the places `holes`."""
    return x_R[:num_rows].index_copy(0, holes, x_R.index_select(0, tail))


def _normed(x: Tensor, norm: Norm) -> Tensor:
    if norm.bias is not None:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def _padding_bias(mask_PL: Tensor, width: int) -> Tensor:
    """−∞ in the columns of padding, 0 in the others and in those after the prompt: [P, width]."""
    bias = torch.zeros(mask_PL.shape, device=mask_PL.device)
    bias = bias.masked_fill_(mask_PL == 0, -torch.inf)
    return F.pad(bias, (0, width - mask_PL.shape[1]))


def _causal_attention(
    query: Tensor, key: Tensor, value: Tensor, mask_PL: Tensor, scaling: float
) -> Tensor:
    """Attention within prompts: query [P, H, L, E] to key, value [P, K, L, E]; [P·L, H·E].

    Padding attends to itself alone: a row of scores that are all −∞ would be NaN.
    """
    width = mask_PL.shape[1]
    causal_LL = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()
    itself_LL = torch.eye(width, dtype=torch.bool, device=query.device)
    visible_PLL = causal_LL & (mask_PL[:, None] > 0) | itself_LL
    mixed = F.scaled_dot_product_attention(
        query, key, value, visible_PLL[:, None], scale=scaling, enable_gqa=True
    )
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)
