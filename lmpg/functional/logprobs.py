"""Log-probability and entropy of chosen tokens, without ever holding logits of every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class LogitShape:
    """What happens to `hidden @ weight.T + bias` before the softmax.

    logits = softcap · tanh(scale · x / softcap) / temperature; without a softcap scale · x /
    temperature.
    """

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, raw: Tensor) -> Tensor:
        """Logits in at least float32 from the head's raw output."""
        raw = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
        if self.softcap is None:
            factor = self.scale / self.temperature
            return raw if factor == 1 else raw * factor
        return torch.tanh(raw * (self.scale / self.softcap)) * (self.softcap / self.temperature)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d raw, as a function of the logits."""
        if self.softcap is None:
            return self.scale / self.temperature
        bent = 1 - (logits * (self.temperature / self.softcap)).square()
        return bent * (self.scale / self.temperature)


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: LogitShape) -> Tensor:
    """Logits [N, V] of hidden states [N, D]; the product in autocast's precision, then float32."""
    dtype = _product_dtype(hidden, weight)
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
) -> tuple[Tensor, Tensor]:
    """log p(ids) and entropy, both [N] in nats, of softmax(head(hidden) / temperature).

    hidden [N, D], weight [V, D], bias [V] or None, ids [N]. Only `chunk` rows of logits exist at a
    time: the backward pass computes them again. Gradients reach hidden, weight and bias through
    both outputs.
    """
    shape = LogitShape(temperature, scale, softcap)
    dtype = _product_dtype(hidden, weight)
    return _TokenLogprobs.apply(hidden, weight, bias, ids, shape, chunk, dtype)


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return torch.promote_types(hidden.dtype, weight.dtype)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, shape, chunk, dtype):
        ctx.set_materialize_grads(False)  # an entropy that no loss reads costs nothing
        ctx.save_for_backward(hidden, weight, bias, ids)
        ctx.shape, ctx.chunk, ctx.dtype = shape, chunk, dtype
        logprobs = hidden.new_empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
        entropy = torch.empty_like(logprobs)
        for rows, logits in _chunks(hidden, weight, bias, shape, chunk, dtype):
            logp = logits.log_softmax(1)
            logprobs[rows] = logp.gather(1, ids[rows, None])[:, 0]
            entropy[rows] = -(logp.exp() * logp).sum(1)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, bias, ids = ctx.saved_tensors
        grads = _Gradients(hidden, weight, bias, ctx.needs_input_grad, ctx.dtype)
        for rows, logits in _chunks(hidden, weight, bias, ctx.shape, ctx.chunk, ctx.dtype):
            grad = _logits_grad(logits, ids[rows], grad_logprobs, grad_entropy, rows)
            grads.add(rows, grad.mul_(ctx.shape.slope(logits)))
        return grads.hidden, grads.weight, grads.bias, None, None, None, None


def _chunks(hidden, weight, bias, shape, chunk, dtype):
    """(rows, logits [chunk, V]) of one chunk of rows after the other."""
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        yield rows, shape.logits(F.linear(hidden[rows].to(dtype), weight, bias))


def _logits_grad(logits, ids, grad_logprobs, grad_entropy, rows) -> Tensor:
    """d(Σ gₗ log p(id) + gₕ H) / d logits = gₗ (1[id] − p) − gₕ p (log p + H)."""
    p = logits.softmax(1)
    towards_p = torch.zeros_like(p[:, :1])
    if grad_entropy is not None:
        logp = logits.log_softmax(1)
        entropy = -(p * logp).sum(1, keepdim=True)
        towards_p = grad_entropy[rows, None] * (logp + entropy)
    if grad_logprobs is not None:
        towards_p = towards_p + grad_logprobs[rows, None]
    grad = p.mul_(-towards_p)
    if grad_logprobs is not None:
        grad.scatter_add_(1, ids[:, None], grad_logprobs[rows, None])
    return grad


class _Gradients:
    """Gradients of the head's inputs, summed over chunks in at least float32."""

    def __init__(self, hidden, weight, bias, needed, dtype):
        wide = torch.promote_types(dtype, torch.float32)
        self._hidden, self._weight, self._dtype = hidden, weight.to(dtype), dtype
        self.hidden = torch.zeros_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None

    def add(self, rows: slice, grad: Tensor) -> None:
        if self.bias is not None:
            self.bias += grad.sum(0)
        grad = grad.to(self._dtype)
        if self.hidden is not None:
            self.hidden[rows] = grad @ self._weight
        if self.weight is not None:
            hidden = self._hidden[rows].to(self._dtype)
            if self.weight.dtype == self._dtype:
                self.weight.addmm_(grad.T, hidden)
            else:
                self.weight += grad.T @ hidden
