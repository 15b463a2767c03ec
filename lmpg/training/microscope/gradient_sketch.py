"""Gradients of big models in few numbers, so that inner products stay unbiased."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from lmpg.runtime.seeding import generator


class GradientSketch:
    """Count sketches of gradients (Charikar et al. 2002): each component of the gradient is added
    to one of `width` numbers with a random sign.

    The inner product of two sketches is that of the gradients in the mean over the signs, with an
    error of about √(2/width) of the product of their norms. Gradients with no more components than
    `width` are kept as they are (`exact`). A parameter's gradient is freed as soon as it is taken
    in, so that no two lie in memory; the signs take a byte per component.

    squares: the squared norms of all gradients so far, true and of their sketches, [2] each.
    """

    def __init__(self, parameters: Iterable[Tensor], width: int, seed: int) -> None:
        self.parameters = list(parameters)
        self.size = sum(p.numel() for p in self.parameters)
        self.exact = self.size <= width
        self.width = self.size if self.exact else width
        self.squares: list[tuple[float, float]] = []
        self._signs: list[Tensor | None] = []
        self._starts: list[int] = []
        start = 0
        for i, p in enumerate(self.parameters):
            self._starts.append(start % self.width)
            start += p.numel()
            signs = None
            if not self.exact:
                random = generator(seed, "sketch", i)
                signs = torch.randint(2, (p.numel(),), dtype=torch.int8, generator=random) * 2 - 1
            self._signs.append(None if signs is None else signs.to(p.device))

    def of(self, backward: Callable[[], object]) -> Tensor:
        """The sketch [width], float64, of the gradient that `backward` accumulates."""
        found = torch.zeros(self.width, dtype=torch.float64)
        square = 0.0

        def take(i: int, p: Tensor) -> None:
            nonlocal square
            if p.grad is None:
                return
            gradient, p.grad = p.grad.reshape(-1), None
            square += float(gradient.double().square().sum()) if self.exact else _square(gradient)
            found.add_(self._folded(gradient, i))

        with self._hooked(take):
            backward()
        self.squares.append((square, float(found.square().sum())))
        return found

    @property
    def relative_error(self) -> float:
        """The root mean square of the relative errors of squared norms so far, as measured."""
        true, sketched = torch.tensor(self.squares, dtype=torch.float64).reshape(-1, 2).unbind(1)
        known = true > 0
        return float((sketched[known] / true[known] - 1).square().mean().sqrt())

    def _folded(self, gradient: Tensor, i: int) -> Tensor:
        signs, start = self._signs[i], self._starts[i]
        signed = gradient if signs is None else gradient.float() * signs
        padded = F.pad(signed, (start, -(start + len(signed)) % self.width))
        return padded.view(-1, self.width).sum(0).double().cpu()

    @contextmanager
    def _hooked(self, take: Callable[[int, Tensor], None]) -> Iterator[None]:
        handles = [
            p.register_post_accumulate_grad_hook(lambda p, i=i: take(i, p))  # type: ignore[misc]
            for i, p in enumerate(self.parameters)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _square(gradient: Tensor) -> float:
    return float(gradient.float().square().sum())
