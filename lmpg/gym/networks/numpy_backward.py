"""Forward and backward pass of a small policy in numpy, whose calls cost a fraction of torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmpg.types import Evaluation

Arrays = tuple[np.ndarray | None, ...]


class NumpyBackward:
    """One forward pass of a policy over steps [B, T], kept so that it can be differentiated.

    policy: an `MLPPolicy`. tensors: log-probs, entropy and (with a critic) values [B, T], without
    a graph.
    """

    def __init__(self, policy: Any, observations: Tensor, actions: Tensor) -> None:
        self._policy, shape = policy, observations.shape[:-1]
        rows = observations.reshape(-1, observations.shape[-1]).numpy()
        taken = actions.reshape(len(rows), *actions.shape[len(shape) :]).numpy()
        outputs, self._actor_states = policy.actor.forward_in_numpy(rows)
        logprobs, entropies, self._vjp = policy.distribution.closed_form(outputs, taken)
        self.tensors = [torch.from_numpy(x.reshape(shape)) for x in (logprobs, entropies)]
        if policy.critic is not None:
            read = self._actor_states[-1] if policy.shared else rows
            values, self._critic_states = policy.critic.forward_in_numpy(read)
            self.tensors.append(torch.from_numpy(values.reshape(shape)))

    def parameters(self) -> list[torch.nn.Parameter | None]:
        """The actor's vector, log σ if it is learned, the critic's vector; None for absent ones."""
        policy, critic = self._policy, self._policy.critic
        log_std = getattr(policy.distribution, "log_std", None)
        learned = log_std if log_std is not None and log_std.requires_grad else None
        return [policy.actor.flat, learned, None if critic is None else critic.flat]

    def gradients(
        self, by_logprob: Tensor | None, by_entropy: Tensor | None, by_value: Tensor | None = None
    ) -> Arrays:
        """A loss's gradients with respect to `parameters`, from those with respect to log-probs,
        entropy and values; None stands for 0."""
        policy, critic = self._policy, self._policy.critic
        by_flat = by_log_std = by_critic = from_critic = None
        if critic is not None and by_value is not None:
            by_critic, from_critic = critic.backward_in_numpy(
                by_value.reshape(-1, 1).numpy(), self._critic_states, to_features=policy.shared
            )
        if not (by_logprob is None and by_entropy is None and from_critic is None):
            by_output, by_log_std = self._vjp(_flat(by_logprob), _flat(by_entropy))
            by_flat, _ = policy.actor.backward_in_numpy(
                by_output, self._actor_states, False, from_critic
            )
        return by_flat, by_log_std, by_critic

    def backward(self, *grads: Tensor | None) -> None:
        """Add `gradients` to the `.grad` of the parameters, as autograd does."""
        for p, gradient in zip(self.parameters(), self.gradients(*grads)):
            if p is not None and gradient is not None:
                found = torch.from_numpy(gradient)
                p.grad = found if p.grad is None else p.grad + found


def evaluate_in_numpy(policy: Any, observations: Tensor, actions: Tensor) -> Evaluation:
    """Log-probs, entropy and values of steps [B, T] as one node of autograd's graph."""
    kept = NumpyBackward(policy, observations, actions)
    return Evaluation(*_Node.apply(kept, *kept.parameters()))


class _Node(torch.autograd.Function):
    """Parameters are inputs so that autograd sends their gradients where they belong."""

    @staticmethod
    def forward(ctx, kept, *parameters):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parameters)  # so that autograd notices a change before backward
        ctx.kept = kept
        return tuple(kept.tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_logprob, by_entropy, by_value=None):
        learned = ctx.saved_tensors
        found = ctx.kept.gradients(by_logprob, by_entropy, by_value)
        known = [
            None if p is None or x is None else torch.from_numpy(x) for p, x in zip(learned, found)
        ]
        return None, *known


def _flat(grad: Tensor | None) -> np.ndarray | None:
    return None if grad is None else grad.reshape(-1).numpy()
