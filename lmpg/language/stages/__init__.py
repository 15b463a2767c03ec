"""Stages: each file turns the settings of one kind of offline training into an objective."""

from lmpg.language.stages.preference import dpo, kto
from lmpg.language.stages.prepared import Stage
from lmpg.language.stages.reward_modelling import reward_model
from lmpg.language.stages.settings import DpoSettings, KtoSettings, RewardModelSettings, SftSettings
from lmpg.language.stages.sft import sft

STAGES: dict[str, Stage] = {
    "sft": Stage(SftSettings, sft),
    "reward_model": Stage(RewardModelSettings, reward_model),
    "dpo": Stage(DpoSettings, dpo),
    "kto": Stage(KtoSettings, kto),
}
