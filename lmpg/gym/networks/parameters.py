"""A small policy's parameters as one vector θ: gradients, KL divergences and Fisher products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence
from torch.func import functional_call, grad, vmap

from lmpg.gym.networks.mlp_policy import MLPPolicy

Parameters = list[nn.Parameter]


def actor_parameters(policy: MLPPolicy) -> Parameters:
    """θ: the parameters of the action probabilities, in a fixed order, without frozen ones."""
    return [p for name, p in _trained(policy) if not name.startswith("critic.")]


def critic_parameters(policy: MLPPolicy) -> Parameters:
    """w: the parameters of the values alone; a trunk shared with the actor belongs to θ."""
    return [p for name, p in _trained(policy) if name.startswith("critic.")]


def _trained(policy: MLPPolicy) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in policy.named_parameters() if p.requires_grad)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All tensors copied into one vector [n]."""
    return torch.cat([x.detach().reshape(-1) for x in tensors])


@torch.no_grad()
def place(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """θ ← `vector` [n]."""
    sizes = [p.numel() for p in parameters]
    for p, values in zip(parameters, vector.split(sizes)):
        p.copy_(values.view_as(p))


@torch.no_grad()
def move(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """θ ← θ + `vector` [n]."""
    sizes = [p.numel() for p in parameters]
    for p, change in zip(parameters, vector.split(sizes)):
        p.add_(change.view_as(p))


def gradient(scalar: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """∇ `scalar`, [n]."""
    return flat(torch.autograd.grad(scalar, parameters))


def logprobs(policy: MLPPolicy, observations: Tensor, actions: Tensor) -> Tensor:
    """log π(a | s) of N steps, [N]; of a single one, []."""
    return policy.distribution.logprobs_and_entropy(policy.actor(observations), actions)[0]


def grad_logprobs(policy: MLPPolicy, observations: Tensor, actions: Tensor) -> Tensor:
    """∇_θ log π(a | s) of each of N steps by itself, [N, n]."""
    names = {p: name for name, p in policy.named_parameters()}
    theta = {f"policy.{names[p]}": p.detach() for p in actor_parameters(policy)}
    module = _Logprob(policy)

    def logprob(theta: dict[str, Tensor], observation: Tensor, action: Tensor) -> Tensor:
        return functional_call(module, theta, (observation, action))

    with twice_differentiable(policy):
        per_step = vmap(grad(logprob), in_dims=(None, 0, 0))(theta, observations, actions)
    return torch.cat([per_step[name].reshape(len(observations), -1) for name in theta], 1)


class _Logprob(nn.Module):
    """log π as a module, since torch calls only modules with other parameters than their own."""

    def __init__(self, policy: MLPPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return logprobs(self.policy, observation, action)


@contextmanager
def twice_differentiable(policy: MLPPolicy) -> Iterator[None]:
    """Within, the actor can be differentiated twice, at the price of speed (see `FlatMLP`)."""
    actor: Any = policy.actor
    before = getattr(actor, "twice", False)
    actor.twice = True
    try:
        yield
    finally:
        actor.twice = before


def distribution(policy: MLPPolicy, observations: Tensor) -> Distribution:
    """π(· | s) for N observations, with gradient unless it is switched off."""
    return policy.distribution.as_torch(policy.actor(observations))


def mean_kl(old: Distribution, new: Distribution) -> Tensor:
    """Mean over the states of KL(π_old(· | s) ‖ π(· | s)), in nats."""
    return kl_divergence(old, new).mean()


def fisher_product(policy: MLPPolicy, observations: Tensor) -> Callable[[Tensor], Tensor]:
    """v [n] ↦ Fv, F the Fisher information E_s E_a[∇log π ∇log πᵀ] over N observed states.

    F is the Hessian of KL(π_old ‖ π) at π = π_old, so Fv is the gradient of (∇KL)ᵀv: two backward
    passes, without ever forming F (arXiv 1502.05477, appendix C).
    """
    theta = actor_parameters(policy)
    with torch.no_grad():
        old = distribution(policy, observations)
    with twice_differentiable(policy):
        kl = mean_kl(old, distribution(policy, observations))
    first = torch.autograd.grad(kl, theta, create_graph=True)
    slope = torch.cat([g.reshape(-1) for g in first])

    def product(v: Tensor) -> Tensor:
        return flat(torch.autograd.grad(slope @ v, theta, retain_graph=True))

    return product
