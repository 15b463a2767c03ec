"""Programs take settings and, where somebody has one, a world: no command line, no flags."""

from __future__ import annotations

import json

import pytest

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.language.program import train_language
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.language.settings import LanguageSettings
from lmpg.language.stages import STAGES
from lmpg.language.suitable import suitable_settings, suitable_stage_settings
from lmpg.language.worlds.world import World
from lmpg.runs.settings import LanguageEvaluationSettings, RunSettings
from lmpg.settings.raw import completed, merged
from lmpg.settings.section import UserError
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
    assert suitable_settings(GRPO, preset, OWN)["update"]["epochs"] == 7
    assert suitable_stage_settings("sft", STAGES["sft"], preset, OWN)["update"]["epochs"] == 7
    assert suitable_stage_settings("sft", STAGES["sft"], preset, {})["update"]["epochs"] == 7


OWN = {"model": {"path": "m"}, "data": {"path": "d"}, "rewards": {"functions": ("f:f",)}}


def _update(method, **given):
    found = suitable_settings(method, {}, merged(OWN, given))
    return completed(LanguageSettings[method], found, merged(OWN, given)).update


def test_a_model_of_ones_own_learns_in_small_steps_and_adapters_in_larger_ones():
    lora = {"model": {"lora": {"rank": "8"}}}
    assert (_update(GRPO).learning_rate, _update(GRPO, **lora).learning_rate) == (1e-6, 1e-5)
    assert _update(GRPO, **lora, update={"learning_rate": 3e-6}).learning_rate == 3e-6
    rates = [
        suitable_stage_settings("sft", STAGES["sft"], {}, merged(OWN, x))["update"]
        for x in ({}, lora)
    ]
    assert [rate["learning_rate"] for rate in rates] == [2e-5, 2e-4]
    # of an Adam step at a gradient of norm 0.03 in a billion weights no more than 2 % is lost
    assert _update(GRPO).adam_eps <= 0.02 * 0.03 / 1e9**0.5


def test_a_rollout_is_one_optimizer_step_but_four_where_ratios_and_a_critic_serve_several():
    made = [_update(x, update={"rollout_size": 128}) for x in (GRPO, REINFORCE, PPO)]
    assert [(x.minibatch_size, x.epochs) for x in made] == [(128, 1), (128, 1), (32, 1)]
    assert _update(PPO, update={"rollout_size": 6}).minibatch_size == 6


def test_a_critic_learns_faster_than_its_policy_unless_a_rate_is_given():
    assert (_update(PPO).critic_learning_rate, _update(GRPO).critic_learning_rate) == (1e-5, None)
    with_value = {"algorithm": {"baseline": "value"}}
    assert _update(REINFORCE, **with_value).critic_learning_rate == 1e-5
    assert _update(PPO, update={"learning_rate": 1e-5}).critic_learning_rate is None


def test_only_what_is_wrong_is_named_where_a_size_is_no_number():
    wrong = {"update": {"rollout_size": "many"}, "algorithm": {"clip": "x"}}
    with pytest.raises(UserError) as refused:
        _update(PPO, **wrong)
    assert [line.split(" =")[0] for line in str(refused.value).splitlines()] == [
        "algorithm.clip",
        "update.rollout_size",
    ]
