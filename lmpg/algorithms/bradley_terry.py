"""The Bradley-Terry model of preferences, which reward models learn by."""

from __future__ import annotations

from pydantic import Field

from lmpg.settings.section import Section


class RewardModel(Section):
    """What is asked of the two scores of a pair."""

    margin: float = Field(0.0, ge=0)
    """By how much the chosen text is to score higher; a pair's own margin is added."""
    centring: float = Field(0.0, ge=0)
    """c: weight of (chosen + rejected)² in the loss, which keeps scores around 0; 0.01 is usual."""
