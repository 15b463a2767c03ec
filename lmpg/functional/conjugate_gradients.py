"""Conjugate gradients: solves Ax = b if only products Ax can be computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """x with Ax ≈ b for the symmetric positive (semi)definite A behind `product`, from x = 0.

    Hestenes & Stiefel (1952). Exact after as many iterations as A has distinct eigenvalues; ends
    early once the residual is below `tolerance` times |b|. A singular A gives the solution of
    least norm where b lies in its range.
    """
    x = torch.zeros_like(b)
    r, p = b.clone(), b.clone()
    rr = r @ r
    enough = tolerance**2 * rr
    for _ in range(iterations):
        if rr <= enough:
            break
        Ap = product(p)
        alpha = rr / (p @ Ap)
        x += alpha * p
        r -= alpha * Ap
        rr, before = r @ r, rr
        p = r + rr / before * p
    return x
