"""`lmpg diagnose variance`: every estimator over the same responses of the user's own model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmpg.algorithms.rloo import RLOO
from lmpg.language.diagnose.diagnose_settings import VarianceSettings
from lmpg.language.diagnose.fitted_values import explained, fit_value_head
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rewards.results.scores import listed
from lmpg.language.rewards.scorer import started
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rollouts.assembly import assembled
from lmpg.language.rollouts.score_processing import ScoreProcessing
from lmpg.language.rollouts.scoring import GroupSampler
from lmpg.language.trained.loaded import began_alone, loaded
from lmpg.language.trained.measured import prompts_of, rewards_of, scorer_of, world_of
from lmpg.runtime.machine import Stopwatch
from lmpg.runtime.progress import with_progress
from lmpg.runtime.seeding import generator as random_numbers
from lmpg.settings.section import UserError
from lmpg.training.microscope.compared_methods import UNBIASED, compared_methods
from lmpg.training.microscope.estimate_quality import Quality, quality
from lmpg.training.microscope.estimates import Estimates, estimates
from lmpg.training.microscope.gradient_sketch import GradientSketch
from lmpg.types import Rollout


@dataclass(frozen=True)
class Microscope:
    """What was measured: the quality of each estimator, and numbers of the whole.

    numbers: responses, tokens, score, score_std, equal_groups (share of groups with one score) of
    all batches; parameters, sketch, sketch_error; sampling_seconds, gradient_seconds of a batch,
    the latter with one backward pass for each response; critic_responses (what the value head was
    fitted to, 0 where the model had one), critic_explains (the share of the variance of the
    measured returns).
    """

    settings: VarianceSettings
    qualities: dict[str, Quality]
    numbers: dict[str, float]


def measure(settings: VarianceSettings) -> Microscope:
    """Load, sample, score and differentiate what the settings say."""
    processes, world = began_alone(settings), world_of(settings)
    rloo: Any = RLOO(kl_coef=0.0, group_size=settings.group_size)
    with ExitStack() as opened:
        rewards = rewards_of(settings, world)
        functions = started(rewards, {}, opened)
        model = loaded(settings, settings.data, processes, learns=True)
        prompts = prompts_of(settings, model, world)
        scorer = scorer_of(settings, model, prompts, rewards, functions)
        num_groups = settings.batch_size // settings.group_size
        return _measured(settings, GroupSampler(model, scorer, prompts, rloo, num_groups))


def _measured(settings: VarianceSettings, sampler: GroupSampler) -> Microscope:
    longest, policy = settings.sampling.max_new_tokens, sampler.generator.policy
    scores = RewardSettings(**settings.rewards.model_dump())
    draw = partial(drawn, sampler, ScoreProcessing(scores, longest))
    critic = _critic(settings, policy, draw) if settings.lams else {}
    sketch = GradientSketch(
        measured_parameters(policy, settings.parameters), settings.sketch, settings.seed
    )
    methods = compared_methods(settings.group_size, settings.lams)
    kept: list[Rollout] = []
    watch = Stopwatch()
    made = estimates(
        policy, _batches(draw, settings.batches, kept, watch), methods, sketch, longest
    )
    _refuse_equal_scores(kept)
    if settings.lams:
        critic["critic_explains"] = explained(kept)
    unbiased = made.stacked(UNBIASED, longest)
    return Microscope(
        settings,
        {name: quality(made.stacked(name, longest), unbiased) for name in methods},
        _numbers(settings, kept, made, sketch, watch) | critic,
    )


def drawn(sampler: GroupSampler, processing: ScoreProcessing, purpose: str, i: int) -> Rollout:
    """The i-th batch for this purpose, assembled as in training.

    Its prompts are drawn with replacement, so that no batch depends on another.
    """
    generator, key = sampler.generator, ("diagnose", purpose, i)
    random = random_numbers(generator.seed, "prompts", *key)
    prompts = torch.randint(len(sampler.prompts), (sampler.num_groups,), generator=random)
    sampled = sampler.sample_round(key, prompts.tolist(), processing, Stopwatch())
    if sampled.scores.errors == len(sampled.scores.totals):
        raise UserError(
            "no response of a batch could be scored, expected scores. Mend the reward, which "
            f"said:{listed(sampled.scores.messages)}"
        )
    (groups,) = sampled.groups
    part = assembled(groups, groups, generator, None, sampler.algorithm, [], truncated="score")
    return part.rollout


def _batches(draw: partial, count: int, kept: list[Rollout], watch: Stopwatch) -> Iterator[Rollout]:
    """The batches to measure with, which `kept` gets too, without their tokens."""
    for i in with_progress(range(count), "batches measured", count):
        with watch("sampling_seconds"):
            rollout = draw("measure", i)
        kept.append(replace(rollout, inputs={}))
        yield rollout


def measured_parameters(policy: CausalLMPolicy, patterns: tuple[str, ...]) -> list[Tensor]:
    """The model's parameters whose names fit one of the patterns, all without patterns; nothing
    else has a gradient from now on."""
    policy.requires_grad_(False)
    named = [(name, p) for name, p in policy.model.named_parameters() if p.is_floating_point()]
    fitting = [p for name, p in named if not patterns or any(re.search(x, name) for x in patterns)]
    if not fitting:
        raise UserError(
            f"parameters = {' '.join(patterns)} fits none, expected regular expressions for some "
            f"of their names, such as {named[-1][0]}"
        )
    return [p.requires_grad_() for p in fitting]


def _critic(settings: VarianceSettings, policy: CausalLMPolicy, draw: partial) -> dict[str, float]:
    """Fits a value head where the model has no critic of its own."""
    head = policy.value_head
    if head is None or bool(head.weight.any()):
        return {"critic_responses": 0.0}
    fit_value_head(policy, [draw("critic", i) for i in range(settings.critic_batches)])
    return {"critic_responses": float(settings.critic_batches * settings.batch_size)}


def _refuse_equal_scores(kept: list[Rollout]) -> None:
    scores = torch.cat([rollout.scores_B[rollout.scorable_B] for rollout in kept])
    if bool((scores == scores[0]).all()):
        raise UserError(
            f"all {len(scores)} responses score {float(scores[0]):g}, so that there is no gradient "
            "to measure: take a reward or prompts that tell responses apart, or more --batches"
        )


def _numbers(
    settings: VarianceSettings,
    kept: list[Rollout],
    made: Estimates,
    sketch: GradientSketch,
    watch: Stopwatch,
) -> dict[str, float]:
    scores = torch.cat([rollout.scores_B[rollout.scorable_B] for rollout in kept]).double()
    groups_PG = torch.cat([rollout.scores_B for rollout in kept]).view(-1, settings.group_size)
    passes = made.backward_seconds / max(1, made.backwards)
    return {
        "responses": float(made.rows),
        "tokens": made.steps / max(1, made.rows),
        "score": float(scores.mean()),
        "score_std": float(scores.std()),
        "equal_groups": float((groups_PG == groups_PG[:, :1]).all(1).double().mean()),
        "parameters": float(sketch.size),
        "sketch": float(sketch.width),
        "sketch_error": 0.0 if sketch.exact else sketch.relative_error,
        "sampling_seconds": watch.seconds["sampling_seconds"] / settings.batches,
        "gradient_seconds": settings.batch_size
        * (made.forward_seconds / max(1, made.differentiated) + passes),
    }
