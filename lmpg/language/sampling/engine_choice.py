"""Which engine samples the responses that are learned from, as `sampling.engine` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.server.server_sampler import ServerSampler
from lmpg.language.sampling.server.tried_servers import server_sampler
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.language.sampling.stops import NewSearch
from lmpg.runtime.processes import Processes


def sampler_of(
    settings: SamplingSettings,
    policy: CausalLMPolicy,
    tokenizer: Any,
    processes: Processes,
    stops: NewSearch | None,
    *,
    keep_engine: bool,
    compared: bool,
    prompts: Sequence[list[int]],
    folder: Path,
) -> Sampler | ServerSampler:
    """An engine in this process, or servers, which are tried with some `prompts`; `folder` is for
    the weights that they get. compared: whether the engine's log-probs are learned with."""
    if settings.server:
        parts = settings, policy, tokenizer, list(prompts), folder, processes, stops
        return server_sampler(*parts, compared=compared or settings.ahead > 0)
    limits = settings.max_new_tokens, settings.top_k, settings.top_p
    return Sampler(policy, *limits, stops=stops, keep_engine=keep_engine, engine=settings.engine)


def said_of(
    sampler: Sampler | ServerSampler, settings: SamplingSettings, prompts: Sequence[list[int]]
) -> list[str]:
    """Lines for the log: what samples, and what that means for a run that is resumed. prompts: the
    longest is among them."""
    backend = sampler.backend
    if isinstance(sampler, Sampler):
        longest = max(map(len, prompts)) + settings.max_new_tokens
        reason = sampler.why_slower(min(longest, sampler.policy.context_length))
        backend = f"by the model's own forward, because {reason}" if reason else "by lmpg's engine"
    lines = [f"responses are sampled {backend}"]
    if settings.ahead:
        lines.append(
            "each rollout is sampled from the policy before the last update; the first one after "
            "a resume from the newest, so that a resumed run is not the same to the bit"
        )
    return lines
