"""Several choices at once, independent of each other given what is seen."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution
from torch.nn.functional import pad

from lmpg.models import closed_forms
from lmpg.models.action_distributions import Categorical
from lmpg.models.closed_forms import ClosedForm

NEVER = -1e9
"""A logit whose probability is exactly 0."""


class MultiDiscrete(nn.Module):
    """A categorical per dimension; the actor's outputs are their logits one after the other."""

    by_hand = True

    def __init__(self, choices: tuple[int, ...]) -> None:
        super().__init__()
        self.choices = list(choices)
        self.num_outputs = sum(choices)
        self.parts = [Categorical(n) for n in choices]
        ends = list(itertools.accumulate(choices))
        self._slices = [slice(end - n, end) for n, end in zip(choices, ends)]

    def logprobs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the dimensions; `actions` is [..., dimensions]."""
        found = [
            part.logprobs_and_entropy(logits, chosen)
            for part, logits, chosen in zip(
                self.parts, outputs.split(self.choices, -1), actions.unbind(-1)
            )
        ]
        logprobs, entropies = zip(*found)
        return torch.stack(logprobs).sum(0), torch.stack(entropies).sum(0)

    def closed_form(self, outputs: np.ndarray, actions: np.ndarray) -> ClosedForm:
        """See `lmpg.models.closed_forms`."""
        parts = zip(self._slices, actions.T)
        return closed_forms.joint(
            [closed_forms.categorical(outputs[:, cut], chosen) for cut, chosen in parts]
        )

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
