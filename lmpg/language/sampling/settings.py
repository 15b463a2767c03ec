"""Settings of the `sampling` section."""

from __future__ import annotations

import re
from typing import Any, Literal

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
    engine: Literal["auto", "native", "transformers", "vllm"] = "auto"
    """What samples in training: lmpg's own engine (native), the model's own forward (transformers),
    or vLLM servers. auto: the servers where there are some, else native where the model's
    architecture is known to it, else transformers."""
    server: tuple[str, ...] = ()
    """URLs of vLLM servers of the model that is trained, such as http://localhost:8000; prompts are
    shared out among several."""
    transfer: Literal["auto", "nccl", "folder", "lora"] = "auto"
    """How weights go to servers after each update: nccl from GPU to GPU; folder through
    transfer_folder; lora as an adapter through transfer_folder. auto: the first of these that both
    sides can do."""
    transfer_folder: str | None = None
    """Folder for weights, which servers must see by the same path; none: in run.output_dir."""
    server_timeout: float = Field(600.0, gt=0)
    """Seconds that a server's answer is waited for, and the return of one that has gone."""
    max_deviation: float = Field(0.05, gt=0)
    """Nats per token by which log-probs of fixed tokens may deviate from the policy's after weights
    went over (and ten times what they did at first); by more ends the run."""
    ahead: int = Field(0, ge=0, le=1)
    """1: servers sample the next rollout while this one is learned from. It is one update old, for
    which the ratio of the algorithm corrects."""

    @field_validator("server")
    @classmethod
    def _require_urls(cls, server: tuple[str, ...]) -> tuple[str, ...]:
        for url in server:
            if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
                raise ValueError(
                    f"sampling.server = {url}, expected a URL such as http://localhost:8000"
                )
        found = tuple(url.rstrip("/").removesuffix("/v1") for url in server)
        if len(set(found)) < len(found):
            raise ValueError(f"sampling.server = {list(server)} names one server twice")
        return found

    @model_validator(mode="after")
    def _require_servers_where_they_are_meant(self) -> SamplingSettings:
        if self.engine == "vllm" and not self.server:
            raise ValueError(
                "sampling.engine = vllm without sampling.server, expected its URL, such as "
                "--sampling.server http://localhost:8000"
            )
        if self.server and self.engine not in ("auto", "vllm"):
            raise ValueError(
                f"sampling.server = {list(self.server)} with sampling.engine = {self.engine}, "
                "which samples in the process. Leave one of them out"
            )
        for key in ("transfer", "transfer_folder", "server_timeout", "max_deviation", "ahead"):
            value = getattr(self, key)
            if not self.server and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"sampling.{key} = {value} has no effect without sampling.server. Leave it "
                    "out, or set sampling.server to a vLLM server's URL"
                )
        if self.ahead and self.max_refills:
            raise ValueError(
                f"sampling.ahead = {self.ahead} with sampling.max_refills = {self.max_refills}: "
                "which prompts replace others is known too late. Set one of them to 0"
            )
        return self
