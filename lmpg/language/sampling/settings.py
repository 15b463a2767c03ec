"""Settings of the `sampling` section."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from lmpg.settings.section import Section


class DecodingSettings(Section):
    """How responses are sampled; of a model's generation_config only EOS ids are read."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest response, in tokens."""
    min_new_tokens: int = Field(0, ge=0)
    """Tokens before which no EOS may come: there it has probability 0 for policy, old policy and
    reference alike."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, for policy, old policy and reference alike."""
    top_k: int = Field(0, ge=0)
    """Sample from the k likeliest tokens only; 0 from all. Log-probs stay those of all tokens."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the fewest likeliest tokens that together have this probability; 1 from all."""
    stop: tuple[str, ...] = ()
    """Texts that end a response, with the token in which one is complete; rewards see them. `\\n`
    stands for a line break."""

    @field_validator("temperature", mode="before")
    @classmethod
    def _point_to_greedy_decoding(cls, temperature: Any) -> Any:
        if str(temperature) in ("0", "0.0"):
            raise ValueError("expected greater than 0; for the likeliest tokens, --help greedy")
        return temperature

    @field_validator("stop")
    @classmethod
    def _require_texts_that_stop_something(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(text.replace("\\n", "\n") for text in stop)
        if not all(found):
            raise ValueError(
                f"sampling.stop = {list(stop)} has an empty text in it, which every response holds "
                "from its first token on. Leave it out"
            )
        return found

    @model_validator(mode="after")
    def _require_room_for_an_end(self) -> DecodingSettings:
        if self.min_new_tokens >= self.max_new_tokens:
            raise ValueError(
                f"sampling.min_new_tokens = {self.min_new_tokens} with sampling.max_new_tokens = "
                f"{self.max_new_tokens}: no response could end with EOS. Set min_new_tokens lower"
            )
        return self


class SamplingSettings(DecodingSettings):
    """How responses are sampled; of a model's generation_config only EOS ids are read."""

    max_refills: int = Field(0, ge=0)
    """Rounds at most in which groups without spread in their scores are replaced by groups for
    other prompts (DAPO's dynamic sampling); 0 keeps them."""
