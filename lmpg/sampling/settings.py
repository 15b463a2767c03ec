"""Settings of the `sampling` section."""

from __future__ import annotations

from pydantic import Field

from lmpg.sections import Section


class SamplingSettings(Section):
    """How responses are sampled; a model's own generation_config never leaks in."""

    max_new_tokens: int = Field(48, ge=1)
    """Longest response, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, for policy, old policy and reference alike."""
