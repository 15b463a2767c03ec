"""The divergence of next-token distributions from a teacher's, without ever holding all logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmpg.functional.logprobs import HeadGradients, LogitShape, product_dtype


class HeadOutputs(NamedTuple):
    """What logits are computed from: hidden [N, D], weight [V, D], bias [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    shape: LogitShape


def generalised_jsd(mine: HeadOutputs, theirs: HeadOutputs, beta: float, chunk: int) -> Tensor:
    """β KL(q ‖ m) + (1 − β) KL(p ‖ m), m = βq + (1 − β)p, [N] in nats (arXiv 2306.13649, eq. 1).

    q: the teacher's distributions, p: mine. β = 0 is KL(q ‖ p) and β = 1 KL(p ‖ q), to which the
    divergence, divided by β or by 1 − β, tends. Gradients reach my hidden, weight and bias, none
    reaches the teacher. Only `chunk` rows of logits exist at a time; the backward pass computes
    them again. Where one vocabulary is padded further than the other, both end with the shorter.
    """
    hidden, weight, bias, shape = mine
    theirs = theirs._replace(hidden=theirs.hidden.detach(), weight=theirs.weight.detach())
    dtype = product_dtype(hidden, weight)
    return _GeneralisedJSD.apply(hidden, weight, bias, shape, theirs, beta, chunk, dtype)


class _GeneralisedJSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, shape, theirs, beta, chunk, dtype):
        ctx.shape, ctx.beta, ctx.chunk, ctx.dtype = shape, beta, chunk, dtype
        ctx.teachers_shape = theirs.shape
        ctx.save_for_backward(hidden, weight, bias, *theirs[:3])
        found = hidden.new_empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
        for rows in _chunks(len(hidden), chunk):
            _, logp, logq = _distributions(
                HeadOutputs(hidden, weight, bias, shape), theirs, rows, dtype
            )
            found[rows] = _divergences(logp, logq, beta)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, *others = ctx.saved_tensors
        mine = HeadOutputs(hidden, weight, bias, ctx.shape)
        theirs = HeadOutputs(others[0], others[1], others[2], ctx.teachers_shape)
        grads = HeadGradients(hidden, weight, bias, ctx.needs_input_grad, ctx.dtype)
        for rows in _chunks(len(hidden), ctx.chunk):
            logits, logp, logq = _distributions(mine, theirs, rows, ctx.dtype)
            by_logits = torch.zeros_like(logits)
            by_logits[:, : logp.shape[1]] = _slopes(logp, logq, ctx.beta) * grad[rows, None]
            grads.add(rows, by_logits * ctx.shape.slope(logits))
        return grads.hidden, grads.weight, grads.bias, None, None, None, None, None


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _distributions(
    mine: HeadOutputs, theirs: HeadOutputs, rows: slice, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """My logits, and log p and log q of the ids that both have."""
    logits, other = (
        x.shape.logits(
            F.linear(
                x.hidden[rows].to(dtype),
                x.weight.to(dtype),
                None if x.bias is None else x.bias.to(dtype),
            )
        )
        for x in (mine, theirs)
    )
    shared = min(logits.shape[1], other.shape[1])
    return logits, logits[:, :shared].log_softmax(1), other[:, :shared].log_softmax(1)


def _divergences(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return _kl(logq, logp)
    if beta == 1:
        return _kl(logp, logq)
    logm = _log_mixture(logp, logq, beta)
    return beta * _kl(logq, logm) + (1 - beta) * _kl(logp, logm)


def _slopes(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    """d divergence / d logits: p − q for β = 0, else w p (log p/m − KL(p ‖ m)), where w is 1 − β,
    or for β = 1, with m = q, 1."""
    if beta == 0:
        return logp.exp() - logq.exp()
    logm = logq if beta == 1 else _log_mixture(logp, logq, beta)
    apart = _kl(logp, logm)[:, None]
    return (1 if beta == 1 else 1 - beta) * logp.exp() * (logp - logm - apart)


def _log_mixture(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(logq + math.log(beta), logp + math.log1p(-beta))


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one ‖ other) of rows of log-probabilities."""
    return (one.exp() * (one - other)).sum(1)
