"""Settings of an agent's networks."""

from __future__ import annotations

from typing import Literal

from lmpg.settings.section import Section


class PolicySettings(Section):
    """The small networks of a gymnasium agent: an actor and a critic."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, in actor and critic alike; empty means linear."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""
    trunk: Literal["separate", "shared"] = "separate"
    """shared: the critic is one linear layer on the actor's last hidden one, and both train it."""
    log_std: Literal["learned", "fixed"] = "learned"
    """Whether log σ of a Gaussian policy, the same in every state, is trained."""
    initial_log_std: float = 0.0
    """What a Gaussian policy's log σ starts from."""
    squash: bool = False
    """Of Gaussian policies: tanh brings actions into the bounds, instead of cutting them there."""
