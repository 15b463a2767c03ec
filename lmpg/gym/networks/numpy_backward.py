"""A small policy's view of observed steps, forward and backward by hand: in numpy, whose calls cost
a fraction of torch's, and without a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmpg.types import Evaluation

if TYPE_CHECKING:
    from lmpg.gym.networks.mlp_policy import MLPPolicy

Arrays = tuple[np.ndarray | None, ...]


class Evaluated:
    """Log-probs, entropy and (with a critic) values of steps [B, T], and what their gradients are
    in the policy's parameters."""

    def __init__(self, policy: MLPPolicy, observations: Tensor, actions: Tensor) -> None:
        self._policy, shape = policy, observations.shape[:-1]
        rows = observations.reshape(-1, observations.shape[-1]).numpy()
        chosen = actions.reshape(len(rows), *actions.shape[len(shape) :]).numpy()
        outputs, self._actor_states = policy.actor.run(rows)
        found = policy.distribution.closed_form(outputs, chosen)
        logprobs, entropies, self._pullback = found
        self.tensors = [torch.from_numpy(x.reshape(shape)) for x in (logprobs, entropies)]
        if policy.critic is not None:
            read = self._actor_states[-1] if policy.shared else rows
            values, self._critic_states = policy.critic.run(read)
            self.tensors.append(torch.from_numpy(values.reshape(shape)))

    def parameters(self) -> list[torch.nn.Parameter | None]:
        """Those of the actor, log σ where there is one that is learned, those of the critic."""
        policy, critic = self._policy, self._policy.critic
        log_std = getattr(policy.distribution, "log_std", None)
        learned = log_std if log_std is not None and log_std.requires_grad else None
        return [policy.actor.flat, learned, None if critic is None else critic.flat]

    def gradients(
        self, by_logprob: Tensor | None, by_entropy: Tensor | None, by_value: Tensor | None = None
    ) -> Arrays:
        """Of a loss by `parameters`, from those by log-probs, entropy and values; None: 0."""
        policy, critic = self._policy, self._policy.critic
        by_flat = by_log_std = by_critic = from_critic = None
        if critic is not None and by_value is not None:
            by_critic, from_critic = critic.pulled_back(
                by_value.reshape(-1, 1).numpy(), self._critic_states, to_features=policy.shared
            )
        if not (by_logprob is None and by_entropy is None and from_critic is None):
            by_output, by_log_std = self._pullback(_flat(by_logprob), _flat(by_entropy))
            by_flat, _ = policy.actor.pulled_back(by_output, self._actor_states, False, from_critic)
        return by_flat, by_log_std, by_critic

    def backward(self, *grads: Tensor | None) -> None:
        """Add `gradients` to those of the parameters."""
        for p, gradient in zip(self.parameters(), self.gradients(*grads)):
            if p is not None and gradient is not None:
                found = torch.from_numpy(gradient)
                p.grad = found if p.grad is None else p.grad + found


def evaluation(policy: MLPPolicy, observations: Tensor, actions: Tensor) -> Evaluation:
    """The same as one node of autograd's graph."""
    seen = Evaluated(policy, observations, actions)
    return Evaluation(*_Node.apply(seen, *seen.parameters()))


class _Node(torch.autograd.Function):
    """Parameters are inputs so that autograd sends their gradients where they belong."""

    @staticmethod
    def forward(ctx, seen, *parameters):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parameters)  # so that autograd notices a change before backward
        ctx.seen = seen
        return tuple(seen.tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_logprob, by_entropy, by_value=None):
        learned = ctx.saved_tensors
        found = ctx.seen.gradients(by_logprob, by_entropy, by_value)
        known = [
            None if p is None or x is None else torch.from_numpy(x) for p, x in zip(learned, found)
        ]
        return None, *known


def _flat(grad: Tensor | None) -> np.ndarray | None:
    return None if grad is None else grad.reshape(-1).numpy()


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
