"""Causal attention over a ragged batch, with gradients."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmpg.language.models.forward.ragged import Block, Ragged

_WIDE = 32
"""Numbers of a head from which on its products need no help to be fast."""
_QUERIES_AT_ONCE, _MANY_SCORES = 32, 2**20
PLAIN_UP_TO = {torch.bfloat16: 256, torch.float32: 128}
"""Keys up to which a product, a softmax and a product beat torch's fused attention on a CPU."""


class Attention:
    """Causal attention within each row of a ragged batch, and to the prompt that it goes on from.

    heads: of queries, and of keys; a head of keys is shared by heads of queries that follow each
    other. softcap: c in c · tanh(score / c). window: how many tokens a query sees, itself among
    them.
    """

    def __init__(
        self,
        ragged: Ragged,
        heads: tuple[int, int],
        dtype: torch.dtype,
        softcap: float | None = None,
        window: int | None = None,
    ) -> None:
        self._ragged, self._softcap, self._window = ragged, softcap, window
        self._kv_heads, self._shared_by = heads[1], heads[0] // heads[1]
        self._sizes = [block.num_tokens for block in ragged.blocks]
        self._plain = [self._is_plain(block, dtype) for block in ragged.blocks]
        self._masks = [self._mask(b, dtype, p) for b, p in zip(ragged.blocks, self._plain)]

    def __call__(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """What each token takes from those before it, [N, H·D]; q is scaled already."""
        context = [x[: self._ragged.num_shared] for x in (k_NKD, v_NKD)]
        parts = zip(*(x.split(self._sizes) for x in (q_NHD, k_NKD, v_NKD)))
        found = [
            self._attended(block, mask, plain, part, context)
            for block, mask, plain, part in zip(
                self._ragged.blocks, self._masks, self._plain, parts
            )
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attended(self, block: Block, mask, plain: bool, part, context) -> Tensor:
        q_NHD, k_NKD, v_NKD = part
        k_RKCD = self._with_context(k_NKD, block, context[0])
        v_RKCD = self._with_context(v_NKD, block, context[1])
        shape = (block.rows, block.width, self._kv_heads, self._shared_by, q_NHD.shape[-1])
        q_RKSTD = q_NHD.view(shape).permute(0, 2, 3, 1, 4)
        if plain:
            # a mask that hides later tokens alone is nothing to most of the keys
            latest = len(mask) == 1 and self._window is None
            found = _plain_attention(q_RKSTD, k_RKCD, v_RKCD, mask, latest, self._softcap)
        else:
            found = _fused_attention(q_RKSTD, k_RKCD, v_RKCD, mask)
        return found.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1)

    def _with_context(self, x_NKD: Tensor, block: Block, shared: Tensor) -> Tensor:
        """Keys or values of a block's rows as [rows, kv heads, C + width, D]."""
        x_RTKD = x_NKD.view(block.rows, block.width, *x_NKD.shape[1:])
        if block.context_RC is not None:
            # index_select, not x[index]: its backward is deterministic
            before = shared.index_select(0, block.context_RC.flatten())
            x_RTKD = torch.cat([before.view(*block.context_RC.shape, *x_NKD.shape[1:]), x_RTKD], 1)
        return x_RTKD.transpose(1, 2)

    def _is_plain(self, block: Block, dtype: torch.dtype) -> bool:
        if self._softcap is not None:  # which torch's fused attention does not know
            return True
        on_cpu = self._ragged.ids_N.device.type == "cpu"
        return on_cpu and block.num_keys <= PLAIN_UP_TO.get(dtype, 0)

    def _mask(self, block: Block, dtype: torch.dtype, plain: bool) -> Tensor | None:
        """Added to the scores: −∞ for tokens that come later, for padding of the context, and for
        tokens that the window has left behind.

        Plain [1 or rows · kv heads, heads of each · width, C + width], fused [1 or rows, 1, …].
        """
        width, device = block.width, self._ragged.ids_N.device
        if block.context_RC is None and not plain and self._window is None:
            return None
        hidden = torch.ones(width, width, dtype=torch.bool, device=device).triu(1)[None, None]
        if self._window is not None:
            hidden = hidden | torch.ones_like(hidden).tril(-self._window)
        if block.context_RC is not None:
            before = self._hidden_context(block)
            hidden = torch.cat([before, hidden.expand(len(before), -1, -1, -1)], 3)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        mask.masked_fill_(hidden, float("-inf"))
        if not plain:
            return mask
        per_row = self._kv_heads if len(mask) > 1 else 1
        return mask.repeat(1, per_row, self._shared_by, 1).flatten(0, 1)

    def _hidden_context(self, block: Block) -> Tensor:
        """Which tokens of the context a row's tokens do not see, [1 or rows, 1, width, C]."""
        assert block.context_RC is not None
        padding = block.padding_RC
        if padding is None:
            padding = torch.zeros_like(block.context_RC[:1], dtype=torch.bool)
        hidden = padding[:, None, None].expand(-1, 1, block.width, -1)
        if self._window is None:
            return hidden
        column_C = torch.arange(padding.shape[1], device=padding.device)
        step_T1 = torch.arange(block.width, device=padding.device)[:, None]
        position_RT1 = (~padding).sum(1)[:, None, None] + step_T1
        return hidden | (position_RT1 - column_C >= self._window)[:, None]


def _plain_attention(
    q_RKSTD: Tensor,
    k_RKCD: Tensor,
    v_RKCD: Tensor,
    mask: Tensor,
    latest: bool,
    softcap: float | None,
) -> Tensor:
    q, k, v = q_RKSTD.flatten(0, 1), k_RKCD.flatten(0, 1), v_RKCD.flatten(0, 1)
    mask = mask.unflatten(1, q.shape[1:3])
    return _PlainAttention.apply(q, k, v, mask, latest, softcap).view(q_RKSTD.shape)


class _PlainAttention(torch.autograd.Function):
    """softmax(q kᵀ + mask) v of q [B, S, T, D], k and v [B, C, D], causal: a query sees the keys
    up to its own, which is as far from the last as the query is. A softcap bends q kᵀ first.

    Moving many scores through memory is most of the work: queries then come in blocks, each with
    the keys up to its end, so that less of what is masked is computed.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask, latest, softcap):
        ctx.blocks, ctx.softcap = _query_blocks(q, k.shape[1]), softcap
        out, found = torch.empty_like(q), []
        for steps, keys in ctx.blocks:
            scores = torch.bmm(q[:, :, steps].flatten(1, 2), k[:, keys].mT)
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            _mask_(scores.view(*q.shape[:2], -1, keys.stop), mask, steps, keys, latest)
            found.append(_softmax(scores))
            out[:, :, steps] = _applied(found[-1], v[:, keys]).view_as(out[:, :, steps])
        ctx.save_for_backward(q, k, v, *found)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, *found = ctx.saved_tensors
        by_q: Tensor = torch.empty_like(q)
        by_k: Any = None
        by_v: Any = None
        # the last block sees all keys, so that it gives what the others add to
        for (steps, keys), weights in reversed(list(zip(ctx.blocks, found))):
            g, asked = (x[:, :, steps].flatten(1, 2) for x in (grad, q))
            by_v = _plus(by_v, keys, torch.bmm(g.mT, weights))
            by_weights = torch.bmm(g, v[:, keys].mT)
            by_scores = torch._softmax_backward_data(
                by_weights, weights, -1, weights.dtype, grad_input=by_weights
            )
            if ctx.softcap is not None:
                bent = torch.bmm(asked, k[:, keys].mT).div_(ctx.softcap).tanh_()
                by_scores.mul_(1 - bent.square_())
            by_q[:, :, steps] = _applied(by_scores, k[:, keys]).view_as(by_q[:, :, steps])
            by_k = _plus(by_k, keys, torch.bmm(asked.mT, by_scores))
        return by_q, by_k.mT, by_v.mT, None, None, None


def _mask_(scores_BSTC: Tensor, mask: Tensor, steps: slice, keys: slice, latest: bool) -> None:
    """Adds the mask to a block's scores [B, S, queries, keys]. latest: it hides only keys among
    the last, as many as there are queries."""
    first = keys.stop - (steps.stop - steps.start) if latest else 0
    scores_BSTC[..., first:].add_(mask[:, :, steps, first : keys.stop])


def _softmax(scores: Tensor) -> Tensor:
    """In their own memory, which nothing else reads; torch's of bfloat16 is slow on a CPU."""
    if scores.dtype == torch.float32:
        return torch.softmax(scores, -1, out=scores)
    return scores.copy_(torch.softmax(scores, -1, dtype=torch.float32))


def _plus(total: Tensor | None, keys: slice, part: Tensor) -> Tensor:
    if total is None:
        return part
    total[:, :, keys] += part
    return total


def _query_blocks(q_BSTD: Tensor, keys: int) -> list[tuple[slice, slice]]:
    """(queries, the keys that they see) of each block."""
    steps, head_dim = q_BSTD.shape[2:]
    many = q_BSTD.numel() // head_dim * keys >= _MANY_SCORES
    # in bfloat16 what narrower products lose is more than what fewer scores save
    at_once = _QUERIES_AT_ONCE if many and q_BSTD.dtype == torch.float32 else steps
    edges = [*range(0, steps, at_once), steps]
    return [(slice(a, b), slice(keys - steps + b)) for a, b in itertools.pairwise(edges)]


def _applied(weights: Tensor, x: Tensor) -> Tensor:
    """weights [B, M, N] times x [B, N, D]; a narrow result is slow, its transpose is not."""
    if x.shape[-1] >= _WIDE:
        return torch.bmm(weights, x)
    return torch.bmm(x.mT, weights.mT).mT.contiguous()


def _fused_attention(
    q_RKSTD: Tensor, k_RKCD: Tensor, v_RKCD: Tensor, mask: Tensor | None
) -> Tensor:
    shape = q_RKSTD.shape
    k, v = (x[:, :, None].expand(-1, -1, shape[2], -1, -1).flatten(1, 2) for x in (k_RKCD, v_RKCD))
    found = F.scaled_dot_product_attention(
        q_RKSTD.flatten(1, 2), k, v, attn_mask=mask, is_causal=mask is None, scale=1.0
    )
    return found.view(shape)
