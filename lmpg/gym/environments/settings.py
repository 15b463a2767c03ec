"""Settings of the `env` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lmpg.settings.section import Section


class EnvSettings(Section):
    """The gymnasium environment; its rollouts have update.rollout_size / num_envs steps each."""

    id: str = "CartPole-v1"
    """Any registered gymnasium environment id, or `module:id` to import its module first."""
    num_envs: int = Field(8, ge=1)
    """Copies that step together."""
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """auto: the environment's native vector form where gymnasium has one, else sync."""
    normalise_observations: bool = False
    """Observations by their running mean and std, clipped to ±10; frozen outside training."""
    normalise_rewards: bool = False
    """Rewards for learning by the running std of the discounted return, clipped to ±10; episode
    returns are still told as they are."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the environment's constructor."""
