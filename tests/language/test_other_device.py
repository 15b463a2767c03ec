"""Whole runs on a device that is not the CPU and has no float64, as Apple's mps."""

from __future__ import annotations

import json

import pytest
import torch

from lmpg.language.models.inputs import uploaded
from lmpg.language.sampling.choice import choose
from lmpg.runtime.machine import widest
from tests.support.other_device import DEVICE, Rules, other_device
from tests.support.planted import catches
from tests.support.programs import bytes_of, own_parts, run_here
from tests.support.tiny import save_tiny

NO_FLOAT64 = {"lacking": (torch.float64,)}
SEPARATE = {"model.critic": "separate", "update.critic-learning-rate": 1e-3}
GROUPS = {"algorithm.group-size": 4, "algorithm.kl-coef": 0.1}


def summary_of(method, flags, monkeypatch):
    with monkeypatch.context() as patched, other_device(patched, **NO_FLOAT64) as rules:
        folder = run_here(method, flags)
    assert rules.refused == []
    return json.loads((folder / "summary.json").read_text())


@catches("float64 sums on a device that has none", "a tensor left on the CPU")
@pytest.mark.parametrize(("method", "more"), [("grpo", GROUPS), ("ppo", {}), ("ppo", SEPARATE)])
def test_a_run_of_rollouts_fits_a_device_without_float64(method, more, tmp_path, monkeypatch):
    short = {"run.total-steps": 1, "sampling.max-new-tokens": 4, "update.epochs": 1}
    flags = own_parts(tmp_path / "parts") | short | more
    there = summary_of(method, flags | {"run.output-dir": tmp_path / "there"}, monkeypatch)
    assert (there["exit_reason"], there["device"]) == ("finished", "meta")
    run_here(method, flags | {"run.output-dir": tmp_path / "here"})
    here = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert there["before"] == pytest.approx(here["before"], abs=1e-4)
    assert there["after"] == pytest.approx(here["after"], abs=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"chosen": f"film {i}: good", "rejected": f"film {i}: bad"} for i in range(12)]
    texts = [{"text": f"film {i} was good"} for i in range(12)]
    for name, rows in {"pairs": pairs, "texts": texts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(folder / "model")
    return folder


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "bco", "reward_model"])
def test_a_stage_fits_a_device_without_float64(method, data, tmp_path, monkeypatch):
    flags = {
        "model.path": data / "model",
        "data.path": data / ("texts.jsonl" if method == "sft" else "pairs.jsonl"),
        "update.minibatch-size": 4,
        "update.microbatch-size": 4,
        "update.learning-rate": 1e-3,
        "update.adam-eps": 1e-3,
        "run.total-steps": 2,
    }
    if method != "reward_model":
        flags |= {"evaluation.size": 2, "evaluation.max-new-tokens": 4}
    there = summary_of(method, flags | {"run.output-dir": tmp_path / "there"}, monkeypatch)
    run_here(method, flags | {"run.output-dir": tmp_path / "here"})
    here = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert (there["exit_reason"], there["device"]) == ("finished", "meta")
    assert there["after"] == pytest.approx(here["after"], abs=1e-3)


@pytest.mark.parametrize("vocabulary", [40, 3000])
def test_a_device_without_float64_samples_the_tokens_of_one_that_has_it(vocabulary, monkeypatch):
    logits = torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = choose(logits.clone(), uniforms, 0, 1.0)
    with other_device(monkeypatch, **NO_FLOAT64):
        found = choose(logits.to(DEVICE), uniforms, 0, 1.0)
        assert found.tokens_R.device.type == DEVICE.type
        assert bytes_of(found.tokens_R.cpu()) == bytes_of(expected.tokens_R)


def test_only_mps_has_no_float64_and_only_cuda_may_copy_later():
    kinds = {kind: widest(torch.device(kind)) for kind in ("cpu", "cuda", "mps", "xpu")}
    assert kinds.pop("mps") == torch.float32
    assert set(kinds.values()) == {torch.float64}
    asked = []

    class Given:
        def to(self, device, non_blocking):
            asked.append((device.type, non_blocking))

    for kind in ("cpu", "cuda", "mps"):
        uploaded(Given(), torch.device(kind))  # type: ignore[arg-type]
    assert asked == [("cpu", False), ("cuda", True), ("mps", False)]


def test_the_other_device_refuses_what_a_gpu_refuses():
    rules = Rules(**NO_FLOAT64)
    with rules:
        x = torch.ones(3, device=DEVICE)
        assert (2 * x).sum().item() == 6
        with pytest.raises(TypeError, match="mixes devices"):
            torch.add(x, torch.ones(3))
        with pytest.raises(TypeError, match="float64 on the device"):
            x.double()
        with pytest.raises(TypeError, match="float64 on the device"):
            torch.zeros(3, dtype=torch.float64, device=DEVICE)
    assert len(rules.refused) == 3
