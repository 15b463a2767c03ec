"""Action distributions of small policies: in torch to learn from, in numpy to act with.

In numpy their log-probs and entropies have gradients in closed form, as autograd's nodes cost more
than the arithmetic of a few hundred rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution
from torch.nn.functional import pad, softplus

VJP = Callable[[np.ndarray | None, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]
"""(dL/dlogprobs [N], dL/dentropies [N]) ↦ (dL/doutputs, dL/dlog σ); None stands for 0."""
ClosedForm = tuple[np.ndarray, np.ndarray, VJP]
"""Log-probs [N], entropies [N], and how a loss's gradients by them go on to the outputs."""


class ActionDistribution(Protocol):
    """What the actor's outputs mean: the parameters of a distribution over actions.

    num_outputs: numbers per step that it takes. has_closed_form: whether `closed_form` is there.
    As a module it holds whatever else is learned.
    """

    num_outputs: int
    has_closed_form: bool

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs of `actions`, and entropy; both shaped like `outputs` without its last one."""
        ...

    def closed_form(self, outputs: np.ndarray, actions: np.ndarray) -> ClosedForm:
        """Log-probs [N] and entropies [N] of rows in numpy, and their gradients as a VJP."""
        ...

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> np.ndarray:
        """The random numbers that `sample` uses, [steps, envs, …]."""
        ...

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """One action per row, a function of outputs and noise alone."""
        ...

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """The most likely action per row."""
        ...

    def as_torch(self, outputs: Tensor) -> Distribution:
        """The same distribution as torch's own class, for KL divergences; without squashing, which
        changes none."""
        ...


class Categorical(nn.Module):
    """Softmax over logits; sampled by inverting the cumulative distribution."""

    has_closed_form = True

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_outputs = num_actions

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log softmax at the action, and −Σ p log p."""
        logprobs = outputs.log_softmax(-1)
        chosen = logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return chosen, -(logprobs.exp() * logprobs).sum(-1)

    def closed_form(self, outputs: np.ndarray, actions: np.ndarray) -> ClosedForm:
        """At actions [N]: ∇ log π(a) = 1_a − π and ∇H = −π (log π + H)."""
        logits_AN = np.ascontiguousarray(outputs.T)  # sums over a few rows are quick
        shifted_AN = logits_AN - np.maximum.reduce(logits_AN, 0)
        weights_AN = np.exp(shifted_AN)
        totals_N = np.add.reduce(weights_AN, 0)
        log_π_AN, π_AN = shifted_AN - np.log(totals_N), weights_AN / totals_N
        taken = actions, np.arange(len(actions))
        entropies_N = -np.add.reduce(π_AN * log_π_AN, 0)

        def vjp(by_logprob: np.ndarray | None, by_entropy: np.ndarray | None):
            found_AN = np.zeros_like(π_AN)
            if by_logprob is not None:
                found_AN -= π_AN * by_logprob
                found_AN[taken] += by_logprob
            if by_entropy is not None:
                found_AN -= π_AN * (log_π_AN + entropies_N) * by_entropy
            return found_AN.T, None

        return log_π_AN[taken], entropies_N, vjp

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> np.ndarray:
        """Uniforms in [0, 1), one per step and environment."""
        return torch.rand(num_steps, num_envs, generator=generator).numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The first action whose cumulative weight exceeds the uniform."""
        weights = np.exp(outputs - np.maximum.reduce(outputs, 1, keepdims=True))
        cumulative = np.add.accumulate(weights, 1)
        return np.add.reduce(cumulative[:, :-1] <= noise[:, None] * cumulative[:, -1:], 1)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """Argmax."""
        return outputs.argmax(-1)

    def as_torch(self, outputs: Tensor) -> Distribution:
        """Softmax of the logits."""
        return distributions.Categorical(logits=outputs, validate_args=False)


class DiagonalGaussian(nn.Module):
    """N(outputs, σ²) per action dimension, with a σ that is the same in every state.

    σ is learned unless it is `fixed`. Log-probabilities are those of the action as drawn, before
    the environment's bounds clip it.
    """

    log_std: Tensor
    has_closed_form = True

    def __init__(self, num_dimensions: int, initial_log_std: float, fixed: bool = False) -> None:
        super().__init__()
        self.num_outputs = num_dimensions
        log_std = torch.full((num_dimensions,), initial_log_std)
        if fixed:
            self.register_buffer("log_std", log_std)
        else:
            self.log_std = nn.Parameter(log_std)

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log π of `actions`, and the entropy, both summed over the action's dimensions."""
        z = (actions - outputs) * (-self.log_std).exp()
        constant = 0.5 * math.log(2 * math.pi)
        logprobs = (-0.5 * z.square() - self.log_std - constant).sum(-1)
        return logprobs, (self.log_std + constant + 0.5).sum().expand(logprobs.shape)

    def closed_form(self, outputs: np.ndarray, actions: np.ndarray) -> ClosedForm:
        """At actions [N, D]: ∇_μ log π = (a − μ)/σ², its gradient by log σ is ((a − μ)/σ)² − 1,
        that of the entropy 1."""
        log_std = self.log_std.detach().numpy()
        precision, constant = np.exp(-log_std), 0.5 * math.log(2 * math.pi)
        z = (actions - outputs) * precision
        squares = z * z
        spread = np.add.reduce(log_std)
        logprobs_N = -0.5 * np.add.reduce(squares, 1) - (spread + constant * len(log_std))
        entropy = spread + (constant + 0.5) * len(log_std)

        def vjp(by_logprob: np.ndarray | None, by_entropy: np.ndarray | None):
            by_log_std = np.zeros_like(log_std)
            if by_entropy is not None:
                by_log_std += np.add.reduce(by_entropy)
            if by_logprob is None:
                return np.zeros_like(outputs), by_log_std
            by_log_std += by_logprob @ squares - np.add.reduce(by_logprob)
            return z * (by_logprob[:, None] * precision), by_log_std

        return logprobs_N, np.full(len(outputs), entropy, dtype=outputs.dtype), vjp

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> np.ndarray:
        """Standard normals, one per step, environment and dimension."""
        return torch.randn(num_steps, num_envs, self.num_outputs, generator=generator).numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Mean plus σ times the normals."""
        return outputs + np.exp(self.log_std.detach().numpy()) * noise

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """The mean."""
        return outputs

    def as_torch(self, outputs: Tensor) -> Distribution:
        """One event of all dimensions."""
        normal = distributions.Normal(outputs, self.log_std.exp(), validate_args=False)
        return distributions.Independent(normal, 1, validate_args=False)


NODES = 32
"""Of the entropy's quadrature: exact to 1e-7 nats per dimension for σ ≤ 1, to 2e-4 at σ = 2."""


class SquashedGaussian(DiagonalGaussian):
    """a = tanh(u), u from N(outputs, σ²) (arXiv 1801.01290, appendix C), a in (−1, 1).

    The actions here, drawn and recorded, are u: what tanh has rounded to 1 cannot be undone. The
    environment gets tanh(u) stretched to its bounds; densities are those of a in (−1, 1).
    """

    has_closed_form = False  # its entropy is left to autograd

    def __init__(self, num_dimensions: int, initial_log_std: float, fixed: bool = False) -> None:
        super().__init__(num_dimensions, initial_log_std, fixed)
        nodes, weights = np.polynomial.hermite.hermgauss(NODES)
        self._nodes = torch.tensor(math.sqrt(2) * nodes, dtype=torch.float32)
        self._weights = torch.tensor(weights / math.sqrt(math.pi), dtype=torch.float32)

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log N(u) − Σ log(1 − tanh² u), and H(u) + E Σ log(1 − tanh² u) by quadrature."""
        logprobs, entropy = super().logprobs_and_entropy(outputs, actions)
        drawn = outputs.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * self._nodes
        expected = (log_slope(drawn) * self._weights).sum((-1, -2))
        return logprobs - log_slope(actions).sum(-1), entropy + expected


def log_slope(u: Tensor) -> Tensor:
    """log(1 − tanh² u), right for large |u| too, where 1 − tanh² u rounds to 0."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


NEVER = -1e9
"""A logit whose probability is exactly 0."""


class MultiDiscrete(nn.Module):
    """A categorical per dimension; the actor's outputs are their logits one after the other."""

    has_closed_form = True

    def __init__(self, choices: tuple[int, ...]) -> None:
        super().__init__()
        self.choices = list(choices)
        self.num_outputs = sum(choices)
        self.parts = [Categorical(n) for n in choices]
        ends = list(itertools.accumulate(choices))
        self._slices = [slice(end - n, end) for n, end in zip(choices, ends)]

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log π of `actions` [..., dimensions], and the entropy, both summed over dimensions."""
        found = [
            part.logprobs_and_entropy(logits, chosen)
            for part, logits, chosen in zip(
                self.parts, outputs.split(self.choices, -1), actions.unbind(-1)
            )
        ]
        logprobs, entropies = zip(*found)
        return torch.stack(logprobs).sum(0), torch.stack(entropies).sum(0)

    def closed_form(self, outputs: np.ndarray, actions: np.ndarray) -> ClosedForm:
        """Independent choices: log-probs and entropies are summed, gradients stand side by side."""
        parts = zip(self.parts, self._slices, actions.T)
        found = [part.closed_form(outputs[:, cut], taken) for part, cut, taken in parts]
        logprobs, entropies, vjps = zip(*found)

        def vjp(by_logprob: np.ndarray | None, by_entropy: np.ndarray | None):
            return np.concatenate([f(by_logprob, by_entropy)[0] for f in vjps], axis=1), None

        return sum(logprobs), sum(entropies), vjp

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> np.ndarray:
        """Uniforms in [0, 1), one per step, environment and dimension."""
        return torch.rand(num_steps, num_envs, len(self.choices), generator=generator).numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """[rows, dimensions]."""
        parts = zip(self.parts, self._slices, noise.T)
        return np.stack([part.sample(outputs[:, cut], u) for part, cut, u in parts], axis=1)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """The most likely choice in each dimension."""
        return np.stack([outputs[:, cut].argmax(-1) for cut in self._slices], axis=1)

    def as_torch(self, outputs: Tensor) -> Distribution:
        """One event of all dimensions, the shorter ones filled up with what never happens."""
        widest = max(self.choices)
        rows = [
            pad(logits, (0, widest - n), value=NEVER)
            for n, logits in zip(self.choices, outputs.split(self.choices, -1))
        ]
        each = distributions.Categorical(logits=torch.stack(rows, -2), validate_args=False)
        return distributions.Independent(each, 1, validate_args=False)
