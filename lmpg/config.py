"""Settings of each kind of run, composed of the sections that the layers own."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import model_validator

from lmpg.algorithms import algorithm_name
from lmpg.data.settings import DataSettings, TextSettings
from lmpg.environments.settings import EnvSettings
from lmpg.models.settings import ModelSettings, PolicySettings
from lmpg.rewards.settings import RewardSettings
from lmpg.sampling.settings import SamplingSettings
from lmpg.sections import Section
from lmpg.training.adaptation import refuse_what_cannot_change
from lmpg.training.dpo import DPO
from lmpg.training.kto import KTO
from lmpg.training.reward_modelling import RewardModel
from lmpg.training.settings import (
    GymEvaluationSettings,
    GymRunSettings,
    LanguageEvaluationSettings,
    OfflineEvaluationSettings,
    OfflineRunSettings,
    OfflineSettings,
    RunSettings,
    SampledEvaluationSettings,
    UpdateSettings,
)

A = TypeVar("A", bound=Section)


class LanguageSettings(Section, Generic[A]):
    """Fine-tune a causal language model with a policy-gradient algorithm."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    rewards: RewardSettings = RewardSettings()
    sampling: SamplingSettings = SamplingSettings()
    algorithm: A
    update: UpdateSettings = UpdateSettings()
    evaluation: LanguageEvaluationSettings = LanguageEvaluationSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _own_model_data_and_reward_together(self) -> LanguageSettings:
        given = {
            "model.path": self.model.path,
            "data.path": self.data.path,
            "rewards.functions or rewards.models": self.rewards.functions or self.rewards.models,
        }
        if self.model.path and str(self.data.path).startswith("world:"):
            return self  # the world's rewards go with its data
        missing = [name for name, value in given.items() if not value]
        if missing and len(missing) < len(given):
            named = "; ".join(f"{name} = {value}" for name, value in given.items() if value)
            raise ValueError(
                f"{named}, but {' and '.join(missing)} missing: your own model, data and reward "
                "are given together, or none of them for the world built into the script"
            )
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> LanguageSettings:
        group_size = getattr(self.algorithm, "group_size", 1)
        if self.update.rollout_size % group_size:
            raise ValueError(
                f"update.rollout_size = {self.update.rollout_size} is not a multiple of "
                f"algorithm.group_size = {group_size}; every prompt needs a whole group. "
                f"Set algorithm.group_size to a divisor of {self.update.rollout_size}"
            )
        return self

    @model_validator(mode="after")
    def _ratios_of_what_was_sampled(self) -> LanguageSettings:
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
    def _rewards_that_the_algorithm_can_use(self) -> LanguageSettings:
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
                "to say what would have come. Set rewards.truncated to score, zero or mask, or "
                "take an algorithm with a critic, as ppo"
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
    def _groups_to_refill(self) -> LanguageSettings:
        refills = self.sampling.max_refills
        if refills and getattr(self.algorithm, "group_size", 1) == 1:
            name = algorithm_name(type(self.algorithm))
            raise ValueError(
                f"sampling.max_refills = {refills} with algorithm.name = {name}, whose groups have "
                "one response each: none has a spread. Set sampling.max_refills to 0, or take an "
                "algorithm with groups, as grpo"
            )
        return self

    @model_validator(mode="after")
    def _a_critic_to_choose(self) -> LanguageSettings:
        critic, name = self.model.critic, algorithm_name(type(self.algorithm))
        if critic != "shared" and "critic" not in self._needs():
            raise ValueError(
                f"model.critic = {critic}, but algorithm.name = {name} has no critic. Leave "
                "model.critic out, or take an algorithm with a critic, as ppo"
            )
        refuse_critic_rate(self.update, self._needs(), name)
        if critic == "reward_model" and self.model.path and not self.rewards.models:
            raise ValueError(
                "model.critic = reward_model, but there are no rewards.models to start from. Set "
                "model.critic to separate, or give --rewards.models PATH"
            )
        return self

    @model_validator(mode="after")
    def _coefficients_that_can_change(self) -> LanguageSettings:
        refuse_what_cannot_change(self.update, self.algorithm)
        refuse_clip_fraction(self.update, self.algorithm)
        return self

    def _needs(self) -> frozenset[str]:
        return getattr(self.algorithm, "needs", frozenset())


def refuse_critic_rate(update: UpdateSettings, needs: frozenset[str], name: str) -> None:
    """ValueError where the critic is given a learning rate, but there is none."""
    if update.critic_learning_rate is not None and "critic" not in needs:
        raise ValueError(
            f"update.critic_learning_rate = {update.critic_learning_rate}, but algorithm.name = "
            f"{name} has no critic. Leave it out, or take an algorithm with a critic, as ppo"
        )


def refuse_clip_fraction(update: UpdateSettings, algorithm: Section) -> None:
    """ValueError where an update is to end when most steps are clipped, but none ever is."""
    if update.target_clip_fraction is not None and getattr(algorithm, "clip", None) is None:
        raise ValueError(
            f"update.target_clip_fraction = {update.target_clip_fraction}, but algorithm.name = "
            f"{algorithm_name(type(algorithm))} clips nothing here. Leave it out, set "
            "update.target_kl instead, or take an algorithm with algorithm.clip, as ppo"
        )


class GymSettings(Section, Generic[A]):
    """Train an agent in a gymnasium environment with the same algorithms."""

    env: EnvSettings = EnvSettings()
    policy: PolicySettings = PolicySettings()
    algorithm: A
    update: UpdateSettings = UpdateSettings()
    evaluation: GymEvaluationSettings = GymEvaluationSettings()
    run: GymRunSettings = GymRunSettings()

    @model_validator(mode="after")
    def _whole_rows(self) -> GymSettings:
        if self.update.rollout_size % self.env.num_envs:
            raise ValueError(
                f"update.rollout_size = {self.update.rollout_size} is not a multiple of "
                f"env.num_envs = {self.env.num_envs}; every environment steps equally often. "
                f"Set env.num_envs to a divisor of {self.update.rollout_size}"
            )
        return self

    @model_validator(mode="after")
    def _no_language_only_parts(self) -> GymSettings:
        needs: frozenset[str] = getattr(self.algorithm, "needs", frozenset())
        if getattr(self.algorithm, "group_size", 1) > 1 or "greedy" in needs:
            name = algorithm_name(type(self.algorithm))
            raise ValueError(
                f"algorithm.name = {name} compares several responses to one prompt, which an "
                "environment does not have. Set algorithm.name to one without groups, as ppo"
            )
        refuse_what_cannot_change(self.update, self.algorithm)
        refuse_clip_fraction(self.update, self.algorithm)
        refuse_critic_rate(self.update, needs, algorithm_name(type(self.algorithm)))
        for key, single in (("reduction", "token_mean"), ("ratio", "token")):
            value = getattr(self.algorithm, key, single)
            if value != single:
                raise ValueError(
                    f"algorithm.{key} = {value}, but environment steps are learned from one by "
                    f"one, in minibatches that know no episode. Set algorithm.{key} to {single}"
                )
        if "reference" in needs:
            raise ValueError(
                "algorithm.kl_coef is not 0, but an environment has no reference policy to stay "
                "close to. Set algorithm.kl_coef to 0"
            )
        return self


class OfflineLearningSettings(Section):
    """Learn from a fixed set of texts or pairs."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    update: OfflineSettings = OfflineSettings()
    evaluation: OfflineEvaluationSettings = OfflineEvaluationSettings()
    run: OfflineRunSettings = OfflineRunSettings()

    @model_validator(mode="after")
    def _own_model_and_data_together(self) -> OfflineLearningSettings:
        given = {"model.path": self.model.path, "data.path": self.data.path}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == 1:
            named = "; ".join(f"{name} = {value}" for name, value in given.items() if value)
            raise ValueError(
                f"{named}, but {missing[0]} is missing: your own model and data are given "
                "together, or neither for the world built into the script"
            )
        return self

    @model_validator(mode="after")
    def _no_critic(self) -> OfflineLearningSettings:
        if self.model.critic != "shared":
            raise ValueError(
                f"model.critic = {self.model.critic}, but learning from fixed data has no critic. "
                "Leave model.critic out"
            )
        return self


class SampledStageSettings(OfflineLearningSettings):
    """Learn a policy from a fixed set; what it writes may be looked at, too."""

    evaluation: SampledEvaluationSettings = SampledEvaluationSettings()


class SftSettings(SampledStageSettings):
    """Supervised fine-tuning of a causal language model."""

    data: TextSettings = TextSettings()


class DpoSettings(SampledStageSettings):
    """Direct preference optimisation of a causal language model, and its variants."""

    algorithm: DPO = DPO()
    update: OfflineSettings = OfflineSettings(learning_rate=1e-6)


class KtoSettings(SampledStageSettings):
    """KTO: a causal language model learns from answers that are desirable or not."""

    algorithm: KTO = KTO()
    update: OfflineSettings = OfflineSettings(learning_rate=1e-6)


class RewardModelSettings(OfflineLearningSettings):
    """Training of a reward model on preferences."""

    algorithm: RewardModel = RewardModel()

    @model_validator(mode="after")
    def _no_adapter(self) -> RewardModelSettings:
        if self.model.lora.rank:
            raise ValueError(
                f"model.lora.rank = {self.model.lora.rank}, but a reward model is trained as a "
                "whole. Set model.lora.rank to 0"
            )
        return self
