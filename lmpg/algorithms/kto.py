"""KTO."""

from __future__ import annotations

from pydantic import Field

from lmpg.settings.section import Section


class KTO(Section):
    """How gains and losses relative to the reference are valued."""

    beta: float = Field(0.1, gt=0)
    """β: how fast the value of a gain levels off, and so how near the reference it stays."""
    desirable_weight: float = Field(1.0, ge=0)
    """λ_D: weight of the desirable answers; raise it where they are few."""
    undesirable_weight: float = Field(1.0, ge=0)
    """λ_U: weight of the undesirable answers."""
