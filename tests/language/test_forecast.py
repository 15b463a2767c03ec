"""A run says what it will need, and finds the micro-batch that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.gym.settings import gym_settings_class
from lmpg.language.forecast import with_fitting_microbatches
from lmpg.language.models.footprint.needs import LIBRARIES, Work, phases, total
from lmpg.language.models.footprint.shape import shape_of
from lmpg.language.settings import LanguageSettings
from lmpg.language.suitable import suitable_settings
from lmpg.runtime.processes import SingleProcess
from lmpg.settings.raw import defaults_of, merged, validated
from lmpg.settings.section import UserError
from lmpg.training import update
from tests.support.planted import catches
from tests.support.programs import metrics, own_parts, run_here, weights
from tests.support.tiny import save_tiny, tiny_model

OWN = {"model": {"path": "m"}, "data": {"path": "d"}, "rewards": {"functions": ("f:f",)}}
BEFORE = LIBRARIES + 0.0005e9
"""Bytes that leave a tiny run little beside its libraries."""


def built(given, settings=LanguageSettings[PPO]):
    return validated(settings, merged(defaults_of(settings), given)).update


@catches("micro-batches of built-in worlds that depend on the machine")
def test_only_models_of_ones_own_get_micro_batches_that_fit():
    for algorithm in (PPO, GRPO):
        assert suitable_settings(algorithm, {}, OWN)["update"]["microbatch_tokens"] == "auto"
        for world in ("reviews", "addition"):
            given = {"data": {"world": world}}
            found = suitable_settings(algorithm, {}, given).get("update", {})
            assert "microbatch_tokens" not in found
    assert built({}).microbatch_tokens == 0


@pytest.mark.parametrize("value", ["all", "-1", -1, 1.5, "1e3", True, None, "0x10"])
def test_what_is_no_number_of_tokens_is_refused_by_name(value):
    with pytest.raises(UserError, match=r"^update.microbatch_tokens = .*0 for no limit, or auto$"):
        built({"update": {"microbatch_tokens": value}})


def test_a_share_of_memory_goes_with_auto_alone():
    auto = {"microbatch_tokens": "auto", "memory_share": "0.5"}
    assert built({"update": auto}).memory_share == 0.5
    assert built({"update": {"microbatch_tokens": "4096"}}).microbatch_tokens == 4096
    with pytest.raises(UserError, match=r"memory_share = 0.5 with update.microbatch_tokens = 64"):
        built({"update": {"microbatch_tokens": 64, "memory_share": 0.5}})
    for share in (0, 1.5):
        with pytest.raises(UserError, match=r"update.memory_share = "):
            built({"update": {**auto, "memory_share": share}})


def test_an_environment_has_no_tokens():
    with pytest.raises(UserError, match=r"microbatch_tokens = auto, but an environment's steps"):
        built({"update": {"microbatch_tokens": "auto"}}, gym_settings_class("ppo"))


@catches("an engine that stays where memory is short")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_the_engine_gives_way_only_where_memory_is_short(device, monkeypatch, capsys):
    given = {**OWN, "update": {"microbatch_tokens": "auto"}}
    settings = validated(LanguageSettings[PPO], merged(defaults_of(LanguageSettings[PPO]), given))
    work = Work(shape_of(tiny_model()), rows=2, prompt=8, response=8, sampled=10**5, device=device)
    needed = total(work) / settings.update.memory_share
    for memory, stays in ((1.01 * needed, True), (0.99 * needed, device == "cpu")):
        monkeypatch.setattr("lmpg.language.forecast.room_of_each", lambda _, m=memory: (m, m))
        assert with_fitting_microbatches(settings, work, SingleProcess())[1] is stays
        assert ("engine: given back for each update" in capsys.readouterr().out) is not stays
    gone = phases(replace(work, device="cuda", engine_stays=False))["learning"]
    assert phases(replace(work, device="cuda"))["learning"].keys() - gone.keys() == {
        "engine",
        "cache",
    }


@catches("a micro-batch that fits, but weighs what it holds anew")
def test_the_micro_batch_that_fits_changes_no_result(monkeypatch, tmp_path, capsys):
    parts = own_parts(tmp_path / "parts")
    save_tiny(parts["model.path"])
    sizes = {"large": [], "small": []}
    cut = update.microbatches

    def seen(inputs, rows, tokens=0):
        sizes["small" if found else "large"].append(tokens)
        return cut(inputs, rows, tokens)

    found, said = {}, {}
    monkeypatch.setattr(update, "microbatches", seen)
    for name, memory in (("large", 1e12), ("small", BEFORE / 0.8)):
        monkeypatch.setattr("lmpg.language.forecast.room_of_each", lambda _, m=memory: (m, m))
        flags = {**parts, "run.output-dir": tmp_path / name, "run.total-steps": 2}
        found[name] = run_here("ppo", flags)
        said[name] = capsys.readouterr().out
    assert "micro-batches: 4 rows of 2" in said["large"]
    assert "tokens at most, as many as fit into 80% of" in said["small"]
    assert all(tokens == 0 for tokens in sizes["large"])
    least = min(sizes["small"])
    assert 0 < least < 4 * 26
    assert {*sizes["small"]} <= {least, 4 * least}  # with gradients and without
    one, other = (weights(found[name]) for name in found)
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-6)
    first, second = (metrics(found[name]) for name in found)
    assert first[-1]["objective/kl"] == pytest.approx(second[-1]["objective/kl"], abs=1e-5)
