"""Stages: training on a fixed set of texts or pairs. Each file makes the objective of one kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmpg.settings.by_name import ByName

if TYPE_CHECKING:
    from lmpg.language.stages.settings import OfflineLearningSettings

STAGES: ByName[type[OfflineLearningSettings]] = ByName(
    {
        "sft": "lmpg.language.stages.settings:SftSettings",
        "reward_model": "lmpg.language.stages.settings:RewardModelSettings",
        "dpo": "lmpg.language.stages.settings:DpoSettings",
        "kto": "lmpg.language.stages.settings:KtoSettings",
    }
)
"""The settings of each stage, by its name."""
