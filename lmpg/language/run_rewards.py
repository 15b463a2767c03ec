"""The rewards of a run, ready to score, and what its reward functions are told of it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from lmpg.language.data.examples import Split
from lmpg.language.data.prompts import Prompt, common_columns
from lmpg.language.rewards.process_rewards import Decode
from lmpg.language.rewards.scorer import Functions, Scorer
from lmpg.language.settings import LanguageSettings
from lmpg.runtime.processes import Processes


def scorer_for(
    settings: LanguageSettings,
    prompts: Split[Prompt],
    decode: Decode,
    processes: Processes,
    functions: Functions,
) -> Scorer:
    """The rewards, ready to score responses to these prompts. functions: theirs, `started`."""
    return Scorer(
        settings.rewards,
        columns=common_columns(prompts),
        device=str(processes.device),
        trust_remote_code=settings.model.trust_remote_code,
        dtype=settings.model.dtype,
        decode=decode,
        special_tokens=settings.data.special_tokens,
        optional="teacher" in settings.algorithm.needs or settings.environment.has_episodes,
        functions=functions,
        state_at=partial(trainer_state, settings, len(prompts.train), processes.is_main),
    )


def trainer_state(
    settings: LanguageSettings, num_prompts: int, is_main: bool, done: int
) -> dict[str, Any]:
    """What TRL's `trainer_state` tells reward functions after `done` iterations."""
    per_step = settings.update.rollout_size / settings.algorithm.group_size / num_prompts
    total = settings.run.total_steps
    return {
        "global_step": done,
        "max_steps": total,
        "epoch": done * per_step,
        "num_train_epochs": math.ceil(total * per_step),
        "is_local_process_zero": is_main,
        "is_world_process_zero": is_main,
    }
