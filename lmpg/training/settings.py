"""Settings of the `update` section, and what an algorithm cannot use of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lmpg.settings.section import Section

# the algorithm's target → (the coefficient that is adapted, the metric that is held to the target)
TARGETS = {
    "kl_target": ("kl_coef", "objective/kl"),
    "penalty_target": ("penalty_coef", "policy/last_kl"),
}


class OptimizerSettings(Section):
    """The optimizer and its schedule."""

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate. Where it is left out, adapters (LoRA) get ten times as much."""
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    """adamw keeps 8 bytes for each number that learns; adamw_8bit (bitsandbytes) 2, its moments
    being rounded; adafactor (arXiv 1804.04235) next to none, as it has no momentum."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """linear, cosine: down to 0 at the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Iterations over which the learning rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon, to be far below the size of a gradient's elements: 1e-6 in a billion of them
    with a norm of 0.03. Adafactor has its own."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global L2 norm."""


class OfflineSettings(OptimizerSettings):
    """How a model learns from a fixed set of texts or pairs."""

    minibatch_size: int = Field(32, ge=1)
    """Examples per optimizer step at most, over all processes; an epoch is divided evenly."""
    microbatch_size: int = Field(32, ge=1)
    """Examples per forward and backward on one process: memory, never the result."""
    epochs: int = Field(1, ge=1)
    """Passes over the data."""


class BatchSettings(Section):
    """One iteration of a textbook method, which brings its own way to learn."""

    rollout_size: int = Field(2048, ge=1)
    """Environment steps per iteration: of methods that learn from batches, the batch; of those
    that learn after each step or episode, what lies between two lines of the log."""


class AnyUpdateSettings(OptimizerSettings):
    """One iteration: how much is sampled, and how the policy learns from it."""

    rollout_size: int = Field(64, ge=1)
    """Responses (or environment steps) per iteration, over all processes."""
    minibatch_size: int = Field(16, ge=1)
    """Responses (or environment steps) per optimizer step, over all processes."""
    microbatch_size: int = Field(32, ge=1)
    """Responses (or steps) per forward and backward on one process: memory, never the result."""
    microbatch_tokens: int | Literal["auto"] = 0
    """Tokens of prompts and responses, with padding, that a forward and backward holds at most,
    but one response at least: memory, never the result; 0 leaves it to microbatch_size alone, auto
    takes as many as fit into memory_share."""
    memory_share: float = Field(0.8, gt=0, le=1)
    """Share of all memory, the device's or the host's, that a run may take where microbatch_tokens
    is auto."""
    epochs: int = Field(1, ge=1)
    """Passes over each rollout."""
    critic_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the critic (on a shared trunk: of its value head alone), with the same
    schedule; none takes learning_rate."""
    critic_warmup: int = Field(0, ge=0)
    """Iterations at the start that train the critic alone (on a shared trunk: its value head), for
    advantages that mean something when the policy begins to learn."""
    baseline_decay: float = Field(0.9, ge=0, lt=1)
    """Decay per iteration of the running mean return that an `ema` baseline reads."""

    target_kl: float | None = Field(None, gt=0)
    """Nats per step: the update ends before a minibatch whose KL(π_old ‖ π) is above 1.5 times
    this; none goes through all epochs."""
    target_clip_fraction: float | None = Field(None, gt=0, lt=1)
    """The update ends before a minibatch of whose steps more than this share are clipped (have an
    advantage, but no gradient by it); none goes through all epochs. 0.5: when most are."""
    anneal: tuple[str, ...] = ()
    """Algorithm settings that go down linearly to 0 over the run, such as clip, entropy_coef."""

    @field_validator("microbatch_tokens", mode="before")
    @classmethod
    def _require_a_number_of_tokens(cls, value: Any) -> Any:
        number = str(value)
        if isinstance(value, bool) or not (number == "auto" or number.isdecimal()):
            raise ValueError("expected a number of tokens, 0 for no limit, or auto")
        return number if number == "auto" else int(number)

    @model_validator(mode="after")
    def _refuse_a_share_of_nothing(self) -> AnyUpdateSettings:
        given = self.memory_share != type(self).model_fields["memory_share"].default
        if given and self.microbatch_tokens != "auto":
            raise ValueError(
                f"update.memory_share = {self.memory_share} with update.microbatch_tokens = "
                f"{self.microbatch_tokens}, which depends on no memory. Set "
                "update.microbatch_tokens to auto, or leave update.memory_share out"
            )
        return self

    @property
    def most_tokens(self) -> int:
        """microbatch_tokens as a number, once that of `auto` was found."""
        assert self.microbatch_tokens != "auto"
        return self.microbatch_tokens

    @model_validator(mode="after")
    def _require_whole_minibatches(self) -> AnyUpdateSettings:
        if self.rollout_size % self.minibatch_size:
            raise ValueError(
                f"update.rollout_size = {self.rollout_size} is not a multiple of "
                f"update.minibatch_size = {self.minibatch_size}; minibatches must be whole. "
                f"Set update.minibatch_size to a divisor of {self.rollout_size}"
            )
        return self


class UpdateSettings(AnyUpdateSettings):
    """One iteration of a language model: how much is sampled, and how it learns from it."""

    sampler_correction: Literal["none", "truncated", "masked"] = "none"
    """What is done where the engine that samples rounds otherwise than the training forward does,
    with w = π_old/μ: truncated weighs the policy's loss of a token by min(w, sampler_cap); masked
    by w, and by 0 where w is below sampler_floor or above sampler_cap."""
    sampler_cap: float | None = Field(None, gt=1)
    """The largest weight; none takes 2 for truncated, 5 for masked."""
    sampler_floor: float = Field(0.5, ge=0, lt=1)
    """The smallest weight of a token that masked learns from."""

    @model_validator(mode="after")
    def _refuse_bounds_of_no_correction(self) -> UpdateSettings:
        kind = self.sampler_correction
        given = {"sampler_cap": self.sampler_cap, "sampler_floor": self.sampler_floor}
        used = {"none": (), "truncated": ("sampler_cap",), "masked": given.keys()}[kind]
        for key, value in given.items():
            if key not in used and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"update.{key} = {value} has no effect with update.sampler_correction = "
                    f"{kind}. Leave it out, or set update.sampler_correction to masked"
                )
        return self


def refuse_critic_settings(
    update: AnyUpdateSettings, needs: frozenset[str], name: str, iterations: int
) -> None:
    """ValueError where there are settings for a critic but none, or where all `iterations` train
    the critic alone."""
    for key, nothing in (("critic_learning_rate", None), ("critic_warmup", 0)):
        value = getattr(update, key)
        if value != nothing and "critic" not in needs:
            raise ValueError(
                f"update.{key} = {value}, but algorithm.name = {name} has no critic. Leave it "
                "out, or take an algorithm with a critic, as ppo"
            )
    if update.critic_warmup >= iterations:
        raise ValueError(
            f"update.critic_warmup = {update.critic_warmup}, but the run has {iterations} "
            "iterations in all, so the policy would never learn. Set it lower, or the run longer"
        )


def refuse_nothing_to_compare(
    update: AnyUpdateSettings, algorithm: Section, name: str, *, alike: bool
) -> None:
    """ValueError where advantages are relative to a rollout, or a minibatch, that holds but one
    element: they would all be 0, and nothing learned. alike: whether the steps of a row have the
    same credit."""
    if getattr(algorithm, "whiten_minibatches", False) and update.minibatch_size == 1:
        raise ValueError(
            "update.minibatch_size = 1 with algorithm.whiten_minibatches, which compares the rows "
            "of a minibatch with each other. Set update.minibatch_size to 2 or more, or leave "
            "algorithm.whiten_minibatches out"
        )
    relative = getattr(algorithm, "baseline", None) == "batch_mean"
    relative = relative or getattr(algorithm, "whiten", False)
    if alike and relative and update.rollout_size == 1:
        raise ValueError(
            f"update.rollout_size = 1 with algorithm.name = {name}, which compares the rows of a "
            "rollout with each other: one alone would teach nothing. Set update.rollout_size to 2 "
            "or more, or take algorithm.name reinforce with algorithm.baseline ema"
        )


def refuse_settings_of_turns(algorithm: Section, why: str | None) -> None:
    """ValueError where a setting of the algorithm is about turns and has no effect. why: says that
    a row has but one, and what to do; None where it has several."""
    if why is None and getattr(algorithm, "baseline", "") == "group_mean":
        why = "algorithm.baseline = group_mean compares whole episodes. Leave one of them out"
    for key in ("turn_gamma", "turn_lam", "group_level"):
        field = type(algorithm).model_fields.get(key)
        if why and field is not None and getattr(algorithm, key) != field.default:
            raise ValueError(f"algorithm.{key} = {getattr(algorithm, key)}, but {why}")


def refuse_clip_fraction(update: AnyUpdateSettings, algorithm: Section, name: str) -> None:
    """ValueError where an update is to end when most steps are clipped, but none ever is."""
    if update.target_clip_fraction is not None and getattr(algorithm, "clip", None) is None:
        raise ValueError(
            f"update.target_clip_fraction = {update.target_clip_fraction}, but algorithm.name = "
            f"{name} clips nothing here. Leave it out, set "
            "update.target_kl instead, or take an algorithm with algorithm.clip, as ppo"
        )


def refuse_what_cannot_change(update: AnyUpdateSettings, algorithm: Section) -> None:
    """ValueError where a coefficient that is to be annealed or adapted cannot be."""
    for name in update.anneal:
        _refuse_to_anneal(name, algorithm)
    target = getattr(algorithm, "penalty_target", None)
    if target and update.epochs * update.rollout_size == update.minibatch_size:
        raise ValueError(
            f"algorithm.penalty_target = {target} with one optimizer step per rollout "
            "(update.epochs = 1, update.minibatch_size = update.rollout_size): the KL to the "
            "policy that sampled is 0 before it. Set update.epochs to 2 or more"
        )


def _refuse_to_anneal(name: str, algorithm: Section) -> None:
    values = algorithm.model_dump()
    adapted = [coef for target, (coef, _) in TARGETS.items() if values.get(target) is not None]
    possible = [
        key
        for key, value in values.items()
        if isinstance(value, float)
        and value > 0
        and key not in adapted
        and (key in ("clip", "clip_high", "value_clip") or key.endswith("_coef"))
    ]
    if name in possible:
        return
    why = "is steered to its target" if name in adapted else "cannot be annealed"
    if name not in values:
        why = "does not exist"
    elif not values[name]:
        why = f"is {values[name]!r}"
    raise ValueError(
        f"update.anneal = {name}, but algorithm.{name} {why}; expected some of "
        f"{', '.join(possible)}"
    )
