"""Log-probs and entropies of small policies in numpy, with their gradients in closed form.

Autograd's nodes cost more than the arithmetic of a few hundred rows. Each function returns
log-probs [N], entropies [N], and a pullback: what the loss's gradients by these two are as its
gradients by the actor's outputs and by log σ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Pullback = Callable[[np.ndarray | None, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]
ClosedForm = tuple[np.ndarray, np.ndarray, Pullback]


def categorical(logits: np.ndarray, actions: np.ndarray) -> ClosedForm:
    """Softmax over `logits` [N, A] at `actions` [N]: ∇ log π(a) = 1_a − π and
    ∇H = −π (log π + H)."""
    logits_AN = np.ascontiguousarray(logits.T)  # sums over a few rows are quicker than over columns
    shifted_AN = logits_AN - np.maximum.reduce(logits_AN, 0)
    weights_AN = np.exp(shifted_AN)
    totals_N = np.add.reduce(weights_AN, 0)
    log_π_AN, π_AN = shifted_AN - np.log(totals_N), weights_AN / totals_N
    chosen = actions, np.arange(len(actions))
    entropies_N = -np.add.reduce(π_AN * log_π_AN, 0)

    def pullback(by_logprob: np.ndarray | None, by_entropy: np.ndarray | None):
        found_AN = np.zeros_like(π_AN)
        if by_logprob is not None:
            found_AN -= π_AN * by_logprob
            found_AN[chosen] += by_logprob
        if by_entropy is not None:
            found_AN -= π_AN * (log_π_AN + entropies_N) * by_entropy
        return found_AN.T, None

    return log_π_AN[chosen], entropies_N, pullback


def gaussian(means: np.ndarray, log_std: np.ndarray, actions: np.ndarray) -> ClosedForm:
    """N(`means` [N, D], σ²) at `actions` [N, D], log σ [D]: ∇_μ log π = (a − μ)/σ², its gradient by
    log σ is ((a − μ)/σ)² − 1, that of the entropy 1."""
    precision, constant = np.exp(-log_std), 0.5 * math.log(2 * math.pi)
    z = (actions - means) * precision
    squares = z * z
    spread = np.add.reduce(log_std)
    logprobs_N = -0.5 * np.add.reduce(squares, 1) - (spread + constant * len(log_std))
    entropy = spread + (constant + 0.5) * len(log_std)

    def pullback(by_logprob: np.ndarray | None, by_entropy: np.ndarray | None):
        by_log_std = np.zeros_like(log_std)
        if by_entropy is not None:
            by_log_std += np.add.reduce(by_entropy)
        if by_logprob is None:
            return np.zeros_like(means), by_log_std
        by_log_std += by_logprob @ squares - np.add.reduce(by_logprob)
        return z * (by_logprob[:, None] * precision), by_log_std

    return logprobs_N, np.full(len(means), entropy, dtype=means.dtype), pullback


def joint(parts: Sequence[ClosedForm]) -> ClosedForm:
    """Independent choices: sums of their log-probs and entropies, their logits side by side."""
    logprobs, entropies, pullbacks = zip(*parts)

    def pullback(by_logprob: np.ndarray | None, by_entropy: np.ndarray | None):
        return np.concatenate([f(by_logprob, by_entropy)[0] for f in pullbacks], axis=1), None

    return sum(logprobs), sum(entropies), pullback
