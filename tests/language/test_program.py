"""Programs take settings and, where somebody has one, a world: no command line, no flags."""

from __future__ import annotations

import json

from lmpg.algorithms.grpo import GRPO
from lmpg.language.program import train_language
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.language.settings import LanguageSettings
from lmpg.language.suitable import suitable_settings, suitable_stage_settings
from lmpg.language.worlds.world import World
from lmpg.runs.settings import LanguageEvaluationSettings, RunSettings
from lmpg.training.settings import UpdateSettings
from tests.support.programs import let_go, own_parts


def test_a_run_needs_only_settings_and_a_world(tmp_path):
    parts = own_parts(tmp_path / "parts")
    rows = [{"prompt": "abc de"[: 2 + i % 4], "number": i} for i in range(16)]
    world = World(
        model_path=parts["model.path"],
        train_rows=rows,
        held_out_rows=rows[:3],
        eval_metric=lambda prompts, completions: {"known": float(len(completions) == len(prompts))},
        reward_functions=(parts["rewards.functions"],),
        facts={"made": "by hand"},
    )
    settings = LanguageSettings[GRPO](
        algorithm=GRPO(group_size=4),
        sampling=SamplingSettings(max_new_tokens=6),
        update=UpdateSettings(rollout_size=8, minibatch_size=8, microbatch_size=8),
        evaluation=LanguageEvaluationSettings(size=3),
        run=RunSettings(total_steps=1, output_dir=str(tmp_path / "run")),
    )
    train_language(settings, "mine", world)
    let_go()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["name"], summary["made"]) == ("mine", "by hand")
    assert (summary["exit_reason"], summary["after"]["known"]) == ("finished", 1.0)


def test_what_suits_a_world_lies_below_the_preset():
    preset = {"update": {"epochs": 7}}
    found = suitable_settings(GRPO, preset, {"data": {"world": "addition"}})
    assert (found["update"]["epochs"], found["sampling"]) == (7, {"max_new_tokens": 4})
    own = {"model": {"path": "m"}, "data": {"path": "d"}}
    assert suitable_settings(GRPO, preset, own) == preset
    assert suitable_stage_settings("sft", preset, own) == preset
    assert suitable_stage_settings("sft", preset, {})["update"]["epochs"] == 7
