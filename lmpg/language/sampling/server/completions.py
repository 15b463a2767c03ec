"""What is asked of a server's /v1/completions, and what it answers: token ids and log-probs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.server.connection import Server, ServerGone
from lmpg.language.sampling.settings import SamplingSettings

Answer = tuple[list[int], list[float], bool]
"""A response's ids, their log-probs, and whether it ended before its limit."""
_RANDOM_BITS = 2**24
"""As many numbers as torch.rand has in float32."""


def request_of(
    policy: CausalLMPolicy,
    settings: SamplingSettings,
    prompt: list[int],
    count: int,
    limit: int,
    uniforms_GT: Tensor | None,
    *,
    seeded: bool,
) -> dict[str, Any]:
    """The body that asks for `count` responses of at most `limit` tokens; the likeliest without
    uniforms. All that a model's generation_config could change is said.

    seeded: whether the server is given a seed, which follows from the row's random numbers.
    """
    ids, num_steps = policy.head.early
    absent = policy.head.shape.absent
    return {
        "prompt": prompt,
        "n": 1 if uniforms_GT is None else count,
        "max_tokens": limit,
        "min_tokens": min(num_steps, limit) if ids else 0,
        "temperature": 0.0 if uniforms_GT is None else policy.temperature,
        "top_k": settings.top_k or -1,
        "top_p": settings.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed_of(uniforms_GT) if seeded and uniforms_GT is not None else None,
        "ignore_eos": True,
        "stop_token_ids": list(policy.eos_token_ids),
        "stop": list(settings.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "logit_bias": None if absent is None else {str(i): -100.0 for i in absent.tolist()},
        "logprobs": 0,
        "return_token_ids": True,
    }


def seed_of(uniforms_GT: Tensor) -> int:
    """A seed below 2⁴⁸ out of the first random numbers of a group's first row."""
    first = (uniforms_GT[0, :2].double() * _RANDOM_BITS).long().tolist()
    return first[0] * _RANDOM_BITS + first[-1]


def answers_of(server: Server, body: dict[str, Any], count: int) -> list[Answer]:
    """`count` responses; where one is asked for, as the likeliest, it stands for all."""
    found = server.ask("/v1/completions", {"model": server.model, **body})
    choices = sorted((found or {}).get("choices", ()), key=lambda x: x["index"])
    if len(choices) != body["n"]:
        raise ServerGone(f"{len(choices)} responses came for the {body['n']} that were asked for")
    answers = [_answer(x) for x in choices]
    return answers * count if body["n"] < count else answers


def _answer(choice: dict[str, Any]) -> Answer:
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if choice["finish_reason"] not in ("stop", "length") or not ids:
        raise ServerGone(f"a response was broken off ({choice['finish_reason']})")
    if logprobs is None or len(logprobs) != len(ids):
        raise ServerGone("a response came without a log-prob for each of its tokens")
    return ids, logprobs, choice["finish_reason"] == "stop"


def prompt_logprobs(server: Server, ids: list[int]) -> list[float]:
    """The server's log-probs, at temperature 1, of all tokens but the first."""
    body = {
        "model": server.model,
        "prompt": ids,
        "max_tokens": 1,
        "temperature": 1.0,
        "prompt_logprobs": 0,
        "add_special_tokens": False,
    }
    found = (server.ask("/v1/completions", body) or {}).get("choices", [{}])[0]
    rows = found.get("prompt_logprobs") or []
    if len(rows) != len(ids):
        raise ServerGone("log-probs of a prompt's tokens were asked for, and did not come")
    return [rows[t][str(ids[t])]["logprob"] for t in range(1, len(ids))]


@torch.no_grad()
def own_logprobs(
    policy: CausalLMPolicy, rows: list[list[int]], temperature: float = 1.0
) -> list[list[float]]:
    """The policy's log-probs of all tokens but the first of each text, by the model's own
    forward."""
    found = []
    for ids in rows:
        ids_L = torch.tensor(ids, device=policy.device)
        with policy.autocast():
            logits_LV = policy.model(input_ids=ids_L[None]).logits[0, :-1]
        logprobs_LV = (logits_LV.float() / temperature).log_softmax(-1)
        found.append(logprobs_LV.gather(1, ids_L[1:, None])[:, 0].tolist())
    return found
