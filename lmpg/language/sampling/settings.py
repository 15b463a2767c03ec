"""Settings of the `sampling` section."""

from __future__ import annotations

from pydantic import Field

from lmpg.settings.section import Section


class SamplingSettings(Section):
    """How responses are sampled; of a model's generation_config only EOS ids are read."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest response, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, for policy, old policy and reference alike."""
    top_k: int = Field(0, ge=0)
    """Sample from the k likeliest tokens only; 0 from all. Log-probs stay those of all tokens."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the fewest likeliest tokens that together have this probability; 1 from all."""
    max_refills: int = Field(0, ge=0)
    """Rounds at most in which groups without spread in their scores are replaced by groups for
    other prompts (DAPO's dynamic sampling); 0 keeps them."""
