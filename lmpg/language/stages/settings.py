"""Settings of the stages: learning from a fixed set of texts or pairs."""

from __future__ import annotations

from pydantic import model_validator

from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
from lmpg.language.data.settings import DataSettings, TextSettings
from lmpg.language.models.settings import ModelSettings
from lmpg.runs.settings import (
    OfflineEvaluationSettings,
    OfflineRunSettings,
    PreferenceRunSettings,
    SampledEvaluationSettings,
)
from lmpg.settings.section import Section
from lmpg.training.settings import OfflineSettings


class OfflineLearningSettings(Section):
    """Learn from a fixed set of texts or pairs."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    update: OfflineSettings = OfflineSettings()
    evaluation: OfflineEvaluationSettings = OfflineEvaluationSettings()
    run: OfflineRunSettings = OfflineRunSettings()

    @model_validator(mode="after")
    def _require_model_and_data_together(self) -> OfflineLearningSettings:
        given = {"model.path": self.model.path, "data.path": self.data.path}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == 1:
            named = "; ".join(f"{name} = {value}" for name, value in given.items() if value)
            raise ValueError(
                f"{named}, but {missing[0]} is missing: your own model and data are given "
                "together, or neither for a built-in world"
            )
        return self

    @model_validator(mode="after")
    def _refuse_a_critic(self) -> OfflineLearningSettings:
        if self.model.critic != "shared":
            raise ValueError(
                f"model.critic = {self.model.critic}, but learning from fixed data has no critic. "
                "Leave model.critic out"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the model with a reference."""
        return False

    @model_validator(mode="after")
    def _refuse_what_nothing_is_compared_with(self) -> OfflineLearningSettings:
        model = self.model
        if model.reference and not self.needs_reference:
            raise ValueError(
                f"model.reference = {model.reference}, but this loss compares with no reference. "
                "Leave model.reference out, or learn from preferences, as dpo"
            )
        for key in ("teacher", "reference_refresh"):
            if value := getattr(model, key):
                raise ValueError(
                    f"model.{key} = {value}, which is for learning from the model's own responses. "
                    f"Leave model.{key} out"
                )
        return self


class SampledStageSettings(OfflineLearningSettings):
    """Learn a policy from a fixed set; what it writes may be looked at, too."""

    evaluation: SampledEvaluationSettings = SampledEvaluationSettings()


class SftSettings(SampledStageSettings):
    """Supervised fine-tuning of a causal language model."""

    data: TextSettings = TextSettings()
    algorithm: MaximumLikelihood = MaximumLikelihood()
    update: OfflineSettings = OfflineSettings(learning_rate=2e-5)


class DpoSettings(SampledStageSettings):
    """Direct preference optimisation of a causal language model, and its variants."""

    algorithm: DPO = DPO()
    run: PreferenceRunSettings = PreferenceRunSettings()

    @property
    def needs_reference(self) -> bool:
        """Not where the loss does without, as SimPO's."""
        return self.algorithm.reference


class KtoSettings(SampledStageSettings):
    """KTO: a causal language model learns from answers that are desirable or not."""

    algorithm: KTO = KTO()
    run: PreferenceRunSettings = PreferenceRunSettings()

    @model_validator(mode="after")
    def _refuse_that_no_answer_counts(self) -> KtoSettings:
        if not (self.algorithm.desirable_weight or self.algorithm.undesirable_weight):
            raise ValueError(
                "algorithm.desirable_weight = 0 and algorithm.undesirable_weight = 0, so that no "
                "answer counts. Set one of them above 0"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Always."""
        return True


class RewardModelSettings(OfflineLearningSettings):
    """Training of a reward model on preferences."""

    algorithm: BradleyTerry = BradleyTerry()
    update: OfflineSettings = OfflineSettings(learning_rate=1e-5)

    @model_validator(mode="after")
    def _refuse_an_adapter(self) -> RewardModelSettings:
        if self.model.lora.rank:
            raise ValueError(
                f"model.lora.rank = {self.model.lora.rank}, but a reward model is trained as a "
                "whole. Set model.lora.rank to 0"
            )
        if self.model.quantisation != "none":
            raise ValueError(
                f"model.quantisation = {self.model.quantisation}, but a reward model is trained as "
                "a whole, and weights in 4 bits cannot learn. Leave model.quantisation out"
            )
        return self
