"""Whole runs on a device that is not the CPU and has no float64, as Apple's mps."""

from __future__ import annotations

import json

import pytest
import torch

from lmpg.language.models import loading, precision
from lmpg.language.models.inputs import uploaded
from lmpg.language.models.settings import ModelSettings
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


@pytest.fixture
def ampere(monkeypatch):
    """A device whose products round as TF32 does where torch lets them."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(precision, "has_tf32", lambda device: device.type == DEVICE.type)
    monkeypatch.setattr(loading, "has_tf32", precision.has_tf32)
    with other_device(monkeypatch, tf32=True) as rules:
        yield rules
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@catches("TF32's log-probs taken as the sampler recorded them")
@pytest.mark.parametrize(("allowed", "words"), [("True", "TF32"), ("False", "fp32")])
def test_fp32_products_are_tf32_unless_forbidden(allowed, words, ampere, tmp_path, capsys):
    short = {"run.total-steps": 1, "sampling.max-new-tokens": 4, "evaluation.size": 1}
    flags = own_parts(tmp_path / "parts") | short | {"model.tf32": allowed}
    run_here("ppo", flags | {"run.output-dir": tmp_path / "run"})
    line = next(x for x in capsys.readouterr().out.splitlines() if "self-test" in x)
    source = "computed again" if words == "TF32" else "as sampled"
    assert f"old log-probs {source} ({words})" in line
    assert line.startswith("self-test: ratio 1.000000")
    assert ("all rms in TF32" in line) is (words == "TF32")
    assert ampere.rounded > 0 if words == "TF32" else ampere.rounded == 0
    high = "high" if words == "TF32" else "highest"
    assert torch.get_float32_matmul_precision() == high
    assert torch.backends.cudnn.allow_tf32 is (words == "TF32")


@catches("TF32 on in a probe")
@pytest.mark.parametrize(("allowed", "own"), [(True, "TF32"), (False, None)])
def test_a_probe_rounds_nothing(allowed, own, ampere, tmp_path):
    settings = ModelSettings(path=save_tiny(tmp_path / "model"), tf32=allowed)
    tokenizer = loading.tokenizer_of(settings)
    policy = loading.load_policy(settings, tokenizer, critic=False, temperature=1.0, device=DEVICE)
    assert policy.rounds == own
    done = ampere.rounded
    with torch.no_grad(), policy.in_float32():
        policy.trunk(input_ids=torch.tensor([[5, 6]], device=DEVICE))
        assert policy.rounds is None
        assert not torch.backends.cudnn.allow_tf32
    assert ampere.rounded == done
    assert policy.rounds == own


class ProductRotaryEmbedding(torch.nn.Module):
    """As some of transformers compute the angles of positions."""

    def __init__(self):
        super().__init__()
        self.inv_freq = torch.nn.Parameter(torch.tensor([[1.0], [0.1]]))

    def forward(self, positions):
        return self.inv_freq @ positions[None]


@catches("angles of positions in TF32")
def test_angles_of_positions_stay_exact(ampere):
    model = torch.nn.Sequential(ProductRotaryEmbedding()).to(DEVICE)
    positions = torch.tensor([2048.0, 2049.0], device=DEVICE)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    assert model(positions).cpu()[0].tolist() == [2048.0, 2050.0]  # what TF32 makes of them
    torch.set_float32_matmul_precision(before)
    precision.allow_tf32(model, True)
    assert model(positions).cpu()[0].tolist() == [2048.0, 2049.0]
    with pytest.raises(RuntimeError):
        model(positions[:, None])
    assert torch.get_float32_matmul_precision() == "high"  # all else in TF32 as before


def test_the_cpu_has_no_switch_for_tf32(tmp_path):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        settings = ModelSettings(path=save_tiny(tmp_path / "model"), tf32=allowed)
        tokenizer = loading.tokenizer_of(settings)
        policy = loading.load_policy(settings, tokenizer, critic=False, temperature=1.0)
        assert policy.rounds is None
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
        assert not policy.trunk.rotary_emb._forward_hooks
