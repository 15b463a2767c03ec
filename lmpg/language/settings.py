"""Settings of a language-model run: the sections of all rooms, and what does not go together."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import model_validator

from lmpg.algorithms import algorithm_name
from lmpg.language.data.settings import DataSettings
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.runs.settings import LanguageEvaluationSettings, RunSettings
from lmpg.settings.section import Section
from lmpg.training.settings import (
    UpdateSettings,
    refuse_clip_fraction,
    refuse_critic_settings,
    refuse_nothing_to_compare,
    refuse_settings_of_turns,
    refuse_what_cannot_change,
)

A = TypeVar("A", bound=Section)


class LanguageSettings(Section, Generic[A]):
    """Fine-tune a causal language model with a policy-gradient algorithm."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    rewards: RewardSettings = RewardSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
    sampling: SamplingSettings = SamplingSettings()
    algorithm: A
    update: UpdateSettings = UpdateSettings()
    evaluation: LanguageEvaluationSettings = LanguageEvaluationSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _require_model_data_and_reward_together(self) -> LanguageSettings:
        rewards = "rewards.functions or rewards.models"
        given = {
            "model.path": self.model.path,
            "data.path": self.data.path,
            rewards: self.rewards.functions or self.rewards.models,
        }
        parts = "model, data and reward"
        if self.environment.has_episodes:
            given = {"model.path": self.model.path, "environment.path": self.environment.path}
            parts = "model and environment"
        elif self.environment.tools:
            given["environment.tools"] = self.environment.tools
        if "teacher" in self._needs() and self.model.path:  # who judges in place of a reward
            given = {k: v for k, v in given.items() if k != rewards}
            given["model.teacher"] = self.model.teacher
            parts = parts.replace("reward", "teacher")
            parts = parts.replace(" and environment", ", environment and teacher")
        if self.model.path and str(self.data.path).startswith("world:"):
            return self  # the world's rewards go with its data
        if not self.model.path and self.environment.is_built_in:
            return self  # of a built-in world, as the model is
        missing = [name for name, value in given.items() if not value]
        if missing and len(missing) < len(given):
            named = "; ".join(f"{name} = {value}" for name, value in given.items() if value)
            raise ValueError(
                f"{named}, but {' and '.join(missing)} missing: your own {parts} "
                "are given together, or none of them for a built-in world"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_several_turns_cannot_have(self) -> LanguageSettings:
        environment, rewards = self.environment, self.rewards
        if not environment.wanted:
            return self
        if rewards.process != "none":
            raise ValueError(
                f"rewards.process = {rewards.process} with environment.path or environment.tools, "
                "whose rewards per turn are such already. Set rewards.process to none"
            )
        if rewards.overlong_tokens:
            raise ValueError(
                f"rewards.overlong_tokens = {rewards.overlong_tokens} with environment.path or "
                "environment.tools: it knows the length of one turn alone. Set it to 0, and let "
                "the environment's reward tell what is too long"
            )
        if self.sampling.server:
            raise ValueError(
                f"sampling.server = {list(self.sampling.server)} with environment.path or "
                "environment.tools: conversations are sampled in this process, which keeps what "
                "it has read of them. Leave sampling.server and sampling.engine out"
            )
        if 0 < environment.max_tokens <= self.sampling.max_new_tokens:
            raise ValueError(
                f"environment.max_tokens = {environment.max_tokens} is no more than "
                f"sampling.max_new_tokens = {self.sampling.max_new_tokens}, those of one turn. "
                "Set environment.max_tokens to what a whole row may have, or to 0 for no limit"
            )
        return self

    @model_validator(mode="after")
    def _refuse_references_without_effect(self) -> LanguageSettings:
        model, name = self.model, algorithm_name(type(self.algorithm))
        if model.teacher and "teacher" not in self._needs():
            raise ValueError(
                f"model.teacher = {model.teacher}, but algorithm.name = {name} has no teacher. "
                "Take algorithm.name distillation, or set model.reference to stay near that model"
            )
        own = {"reference": model.reference, "reference_refresh": model.reference_refresh}
        for key, value in own.items():
            if value and "teacher" in self._needs():
                raise ValueError(
                    f"model.{key} = {value} with algorithm.name = {name}, whose reference is the "
                    f"teacher. Leave model.{key} out"
                )
            if value and "reference" not in self._needs():
                raise ValueError(
                    f"model.{key} = {value}, but algorithm.name = {name} compares with no "
                    f"reference here. Set algorithm.kl_coef above 0, or leave model.{key} out"
                )
        if all(own.values()):
            raise ValueError(
                f"model.reference = {model.reference} with model.reference_refresh = "
                f"{model.reference_refresh}, which makes the policy the reference. Leave one out"
            )
        return self

    @model_validator(mode="after")
    def _require_whole_groups(self) -> LanguageSettings:
        group_size = getattr(self.algorithm, "group_size", 1)
        if self.update.rollout_size % group_size:
            raise ValueError(
                f"update.rollout_size = {self.update.rollout_size} is not a multiple of "
                f"algorithm.group_size = {group_size}; every prompt needs a whole group. "
                f"Set algorithm.group_size to a divisor of {self.update.rollout_size}"
            )
        return self

    @model_validator(mode="after")
    def _refuse_ratios_of_cut_off_distributions(self) -> LanguageSettings:
        sampling = self.sampling
        compared = self._needs() & {"ratios", "reference"}
        if compared and (sampling.top_k or sampling.top_p < 1):
            name = algorithm_name(type(self.algorithm))
            what = "the policy that sampled" if "ratios" in compared else "the reference"
            raise ValueError(
                f"sampling.top_k = {sampling.top_k}, sampling.top_p = {sampling.top_p} with "
                f"algorithm.name = {name}, which compares π with {what}: where tokens are cut off, "
                "ratios and KL of what is left are wrong. Set top_k to 0 and top_p to 1, or take "
                "an algorithm without ratios, as reinforce or rloo, with algorithm.kl_coef 0"
            )
        return self

    @model_validator(mode="after")
    def _refuse_engines_unfit_for_the_algorithm(self) -> LanguageSettings:
        sampling, name = self.sampling, algorithm_name(type(self.algorithm))
        if sampling.ahead and "ratios" not in self._needs():
            raise ValueError(
                f"sampling.ahead = {sampling.ahead} with algorithm.name = {name}, which has no "
                "ratio to correct for rollouts of an older policy. Set sampling.ahead to 0, or "
                "take an algorithm with ratios, as ppo or grpo"
            )
        correction = self.update.sampler_correction
        if correction == "none":
            return self
        if sampling.ahead:
            raise ValueError(
                f"update.sampler_correction = {correction} with sampling.ahead = "
                f"{sampling.ahead}, where the algorithm's own ratio is to the sampler already. "
                "Leave update.sampler_correction out"
            )
        if "divergence" in self._needs():
            raise ValueError(
                f"update.sampler_correction = {correction} with algorithm.name = {name}, which "
                "compares whole distributions and weighs no token. Leave it out"
            )
        if sampling.top_k or sampling.top_p < 1:
            raise ValueError(
                f"update.sampler_correction = {correction} with sampling.top_k = "
                f"{sampling.top_k}, sampling.top_p = {sampling.top_p}: where tokens are cut off, "
                "its ratio of what is left is wrong. Leave the one or the other out"
            )
        return self

    @model_validator(mode="after")
    def _refuse_rewards_unfit_for_the_algorithm(self) -> LanguageSettings:
        rewards, name = self.rewards, algorithm_name(type(self.algorithm))
        if rewards.process != "none" and not getattr(self.algorithm, "per_step", True):
            raise ValueError(
                f"rewards.process = {rewards.process} with algorithm.name = {name}, which compares "
                "whole responses: rewards of single tokens or steps would be summed. Set "
                "rewards.process to none, or take an algorithm with credit per step, as ppo"
            )
        if rewards.truncated == "bootstrap" and "critic" not in self._needs():
            raise ValueError(
                f"rewards.truncated = bootstrap with algorithm.name = {name}, which has no critic "
                "to say what would have come. Set rewards.truncated to score, zero, mask or "
                "mask_loss, or take an algorithm with a critic, as ppo"
            )
        longest = self.sampling.max_new_tokens
        if rewards.overlong_tokens > longest:
            raise ValueError(
                f"rewards.overlong_tokens = {rewards.overlong_tokens}, but no response is longer "
                f"than sampling.max_new_tokens = {longest}: even an empty one would lose "
                "something. Set rewards.overlong_tokens lower, 0 for none (the preset dapo sets 10)"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_groups_of_one_cannot_do(self) -> LanguageSettings:
        refills, name = self.sampling.max_refills, algorithm_name(type(self.algorithm))
        if getattr(self.algorithm, "group_size", 1) > 1:
            return self
        if self.rewards.combine == "standardised":
            raise ValueError(
                f"rewards.combine = standardised with algorithm.name = {name}, whose groups have "
                "one response each: none has a spread. Set rewards.combine to sum, or take an "
                "algorithm with groups, as grpo"
            )
        if refills:
            raise ValueError(
                f"sampling.max_refills = {refills} with algorithm.name = {name}, whose groups have "
                "one response each: none has a spread. Set sampling.max_refills to 0, or take an "
                "algorithm with groups, as grpo"
            )
        return self

    @model_validator(mode="after")
    def _refuse_centred_scores_where_they_are_divided_by_their_mean(self) -> LanguageSettings:
        if getattr(self.algorithm, "advantage", "") != "relative":
            return self
        for key, value in {"combine": "standardised", "normalise": "running"}.items():
            if getattr(self.rewards, key) == value:
                raise ValueError(
                    f"rewards.{key} = {value} with algorithm.advantage = relative, which divides "
                    f"by the mean score: this is 0 then. Leave rewards.{key} out, or set "
                    "algorithm.advantage to centred"
                )
        return self

    @model_validator(mode="after")
    def _refuse_settings_of_the_other_divergence(self) -> LanguageSettings:
        kind = getattr(self.algorithm, "divergence", None)
        key = {"reverse_kl": "beta", "jsd": "gamma"}.get(str(kind), "")
        if key and getattr(self.algorithm, key) != type(self.algorithm).model_fields[key].default:
            other = "jsd" if kind == "reverse_kl" else "reverse_kl"
            raise ValueError(
                f"algorithm.{key} = {getattr(self.algorithm, key)} has no effect with "
                f"algorithm.divergence = {kind}. Leave it out, or set algorithm.divergence to "
                f"{other}"
            )
        return self

    @model_validator(mode="after")
    def _refuse_critic_settings_without_a_critic(self) -> LanguageSettings:
        critic, name = self.model.critic, algorithm_name(type(self.algorithm))
        if critic != "shared" and "critic" not in self._needs():
            raise ValueError(
                f"model.critic = {critic}, but algorithm.name = {name} has no critic. Leave "
                "model.critic out, or take an algorithm with a critic, as ppo"
            )
        refuse_critic_settings(self.update, self._needs(), name, self.run.total_steps)
        if critic == "reward_model" and self.model.path and not self.rewards.models:
            raise ValueError(
                "model.critic = reward_model, but there are no rewards.models to start from. Set "
                "model.critic to separate, or give --rewards.models PATH"
            )
        return self

    @model_validator(mode="after")
    def _refuse_changes_without_effect(self) -> LanguageSettings:
        refuse_what_cannot_change(self.update, self.algorithm)
        alone = "every response is one turn here. Leave it out, or give --environment.path"
        refuse_settings_of_turns(self.algorithm, None if self.environment.wanted else alone)
        called = self.algorithm, algorithm_name(type(self.algorithm))
        refuse_clip_fraction(self.update, *called)
        alike = self.rewards.process == "none" and "critic" not in self._needs()
        refuse_nothing_to_compare(self.update, *called, alike=alike)
        return self

    @property
    def gives_rewards(self) -> bool:
        """Whether there is a reward, by functions, models or an environment."""
        return bool(self.rewards.functions or self.rewards.models or self.environment.has_episodes)

    def _needs(self) -> frozenset[str]:
        return getattr(self.algorithm, "needs", frozenset())
