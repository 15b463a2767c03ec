"""Stages: what learns from a fixed set, from settings to an objective. One file each."""

from lmpg.config import DpoSettings, KtoSettings, RewardModelSettings, SftSettings
from lmpg.stages.judged import dpo, kto
from lmpg.stages.prepared import Stage
from lmpg.stages.reward_model import reward_model
from lmpg.stages.sft import sft

STAGES: dict[str, Stage] = {
    "sft": Stage(SftSettings, sft),
    "reward_model": Stage(RewardModelSettings, reward_model),
    "dpo": Stage(DpoSettings, dpo),
    "kto": Stage(KtoSettings, kto),
}
