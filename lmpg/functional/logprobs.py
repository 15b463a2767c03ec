"""Log-probability and entropy of given tokens, without ever holding logits of every token."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_AT_ONCE = 2**23
"""Elements of a temporary product."""
IMPOSSIBLE = -1e30
"""A logit whose probability is exactly 0, and 0 times which is 0 still."""


@dataclass(frozen=True)
class LogitShape:
    """What happens to `hidden @ weight.T + bias` before the softmax.

    logits = softcap · tanh(scale · x / softcap) / temperature; without a softcap scale · x /
    temperature. absent: ids that are no choice (int64), whose probability is 0.
    """

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None
    absent: Tensor | None = field(default=None, compare=False)

    @property
    def factor(self) -> float:
        """What raw output is multiplied with where there is no softcap."""
        return self.scale / self.temperature

    def logits(self, raw: Tensor) -> Tensor:
        """Logits in at least float32 from the head's raw output."""
        raw = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
        if self.softcap is None:
            return self.possible(raw if self.factor == 1 else raw * self.factor)
        bent = torch.tanh(raw * (self.scale / self.softcap))
        return self.possible(bent * (self.softcap / self.temperature))

    def possible(self, logits: Tensor) -> Tensor:
        """`logits` [N, V] in which absent ids have probability 0; overwrites them."""
        return logits if self.absent is None else logits.index_fill_(1, self.absent, IMPOSSIBLE)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d raw, as a function of the logits."""
        if self.softcap is None:
            return self.factor
        bent = 1 - (logits * (self.temperature / self.softcap)).square()
        bent = bent if self.absent is None else bent.index_fill_(1, self.absent, 0)
        return bent * self.factor


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: LogitShape) -> Tensor:
    """Logits [N, V] of hidden states [N, D]; the product in autocast's precision, then float32."""
    dtype = product_dtype(hidden, weight)
    bias = None if bias is None else bias.to(dtype)
    return shape.logits(F.linear(hidden.to(dtype), weight.to(dtype), bias))


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    temperature: float,
    chunk: int,
    scale: float = 1.0,
    softcap: float | None = None,
    kept: int = 0,
    absent: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(ids) and entropy, both [N] in nats, of softmax(head(hidden) / temperature).

    hidden [N, D], weight [V, D], bias [V] or None, ids [N]. Gradients of both reach hidden, weight
    and bias. Only `chunk` rows of logits exist at a time; the backward pass computes them again.
    chunk: a number of rows. kept: if there are no more logits than this (and no softcap), their
    probabilities are kept for the backward pass, in the product's precision; an entropy's gradient
    computes them again all the same. absent: ids that are no choice, whose probability is 0.
    """
    shape = LogitShape(temperature, scale, softcap, absent)
    dtype = product_dtype(hidden, weight)
    few = len(hidden) * len(weight) <= kept and softcap is None
    keep = few and torch.is_grad_enabled()
    return _TokenLogprobs.apply(hidden, weight, bias, ids, shape, chunk, dtype, keep)


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The precision of hidden @ weight.T: autocast's where it is on."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return torch.promote_types(hidden.dtype, weight.dtype)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, shape, chunk, dtype, keep):
        ctx.set_materialize_grads(False)  # an entropy that no loss reads costs nothing
        ctx.shape, ctx.chunk, ctx.dtype = shape, chunk, dtype
        wide = torch.promote_types(dtype, torch.float32)
        logprobs = hidden.new_empty(len(hidden), dtype=wide)
        entropy, size = torch.empty_like(logprobs), torch.empty_like(logprobs)
        ctx.kept = hidden.new_empty(len(hidden), len(weight), dtype=dtype) if keep else None
        for rows, raw in _products(hidden, weight, bias, chunk, dtype):
            logits = shape.logits(raw)
            picked = logits.gather(1, ids[rows, None])
            largest = logits.amax(1, keepdim=True)
            p = logits.sub_(largest).softmax(1)  # quicker than an exponential on a CPU
            log_total = p.amax(1, keepdim=True).log_().neg_()  # the likeliest has 1 / total
            logprob = picked - largest - log_total
            logprobs[rows] = logprob[:, 0]
            entropy[rows] = (log_total - logits.mul_(p).sum(1, keepdim=True))[:, 0]
            size[rows] = (largest + log_total)[:, 0]
            if keep:
                # p − 1 of a likely token loses its digits where it is rounded before, not after
                ctx.kept[rows] = p.scatter_(1, ids[rows, None], logprob.expm1_())
        ctx.save_for_backward(hidden, weight, bias, ids, size, entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropy):
        if grad_logprobs is None and grad_entropy is None:
            return (None,) * 8
        hidden, weight, bias, ids, size, entropy = ctx.saved_tensors
        grads = HeadGradients(hidden, weight, bias, ctx.needs_input_grad, ctx.dtype)
        kept, ctx.kept = ctx.kept, None  # its memory is free for the layers before
        if kept is not None and grad_entropy is None:
            grads.add(slice(None), kept, -ctx.shape.factor * grad_logprobs)
        else:
            for rows, raw in _products(hidden, weight, bias, ctx.chunk, ctx.dtype):
                logits = ctx.shape.logits(raw)
                slope = ctx.shape.slope(logits)
                entropy_part = None if grad_entropy is None else (grad_entropy[rows], entropy[rows])
                given = size[rows], ids[rows], grad_logprobs, entropy_part, rows
                grad = _logits_grad(logits, *given)
                flat = isinstance(slope, float) and slope == 1
                grads.add(rows, grad if flat else grad.mul_(slope))
        return grads.hidden, grads.weight, grads.bias, None, None, None, None, None


def _products(hidden, weight, bias, chunk, dtype):
    """(rows, the head's raw output [chunk, V]) of one chunk after another."""
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        yield rows, F.linear(hidden[rows].to(dtype), weight, bias)


def _logits_grad(logits, size, ids, grad_logprobs, entropy_part, rows) -> Tensor:
    """d(Σ gₗ log p(id) + gₕ H) / d logits = gₗ (1[id] − p) − gₕ p (log p + H); overwrites logits.

    size: log Σ exp(logits). entropy_part: gₕ and H.
    """
    logp = logits.sub_(size[:, None])
    if entropy_part is None:
        grad = logp.exp_().mul_(-grad_logprobs[rows, None])
    else:
        p = logp.exp()
        towards_p = logp.add_(entropy_part[1][:, None]).mul_(entropy_part[0][:, None])
        if grad_logprobs is not None:
            towards_p += grad_logprobs[rows, None]
        grad = p.mul_(towards_p.neg_())
    if grad_logprobs is not None:
        grad.scatter_add_(1, ids[:, None], grad_logprobs[rows, None])
    return grad


class HeadGradients:
    """Gradients of the head's inputs, summed over chunks in at least float32."""

    def __init__(self, hidden, weight, bias, needed, dtype):
        wide = torch.promote_types(dtype, torch.float32)
        self._hidden, self._weight, self._dtype = hidden, weight.to(dtype), dtype
        self.hidden = torch.zeros_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None

    def add(self, rows: slice, grad: Tensor, factor: Tensor | None = None) -> None:
        """Count what the gradient of these rows' raw outputs brings: `grad`, each row of it times
        its `factor`, which is taken up where it costs least."""
        grad, hidden = grad.to(self._dtype), self._hidden[rows]
        if self.bias is not None:
            wide = self.bias.dtype
            by_bias = grad.sum(0, dtype=wide) if factor is None else factor.to(self._dtype) @ grad
            self.bias += by_bias
        if self.hidden is not None:
            found = grad @ self._weight
            self.hidden[rows] = found if factor is None else found * factor[:, None]
        if self.weight is not None:
            hidden = (hidden if factor is None else hidden * factor[:, None]).to(self._dtype)
            if self.weight.dtype == self._dtype:
                self.weight.addmm_(grad.T, hidden)
            else:
                self._add_in_parts(grad, hidden)

    def _add_in_parts(self, grad: Tensor, hidden: Tensor) -> None:
        """A product in bfloat16, added in float32, never holding one of all the weight's size."""
        part = max(1, _AT_ONCE // hidden.shape[1])
        for start in range(0, grad.shape[1], part):
            words = slice(start, start + part)
            self.weight[words] += grad[:, words].T @ hidden  # type: ignore[index]
