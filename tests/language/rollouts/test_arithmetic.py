"""What `auto` chose is said once, stands in the run's folder, and stays on other hardware."""

from __future__ import annotations

import json

import pytest
import yaml

from lmpg.cli.main import settings_of
from lmpg.language.models import precision
from lmpg.language.models.loading import load_policy, load_reference, tokenizer_of
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rollouts import arithmetic
from lmpg.language.stages import program
from tests.support.causal_families import save_family
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.tiny import save_tiny


@pytest.fixture
def flags(tmp_path):
    parts = own_parts(tmp_path / "parts") | {"run.total-steps": 1, "run.output-dir": tmp_path / "x"}
    return parts


@pytest.fixture
def hardware(monkeypatch):
    """A function that says whether bfloat16 is fast from here on, and pays for any model."""
    monkeypatch.setattr(precision, "_PAYS_FROM", 1)

    def is_fast(fast: bool) -> None:
        monkeypatch.setattr(precision, "fast_bf16", lambda device: fast)

    is_fast(True)
    return is_fast


def chosen(folder):
    summary = json.loads((folder / "summary.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return summary["precision"], config["model"]["precision"]


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_what_auto_chose_for_all_models_of_a_run_is_one_line(
    fast, expected, flags, hardware, capsys
):
    hardware(fast)
    more = {"model.critic": "separate", "model.reference": flags["model.path"]}
    folder = run_here("ppo", flags | more)
    lines = [x for x in capsys.readouterr().out.splitlines() if "model.precision" in x]
    assert len(lines) == 1
    assert lines[0].startswith(f"model.precision = auto is {expected}: bfloat16")
    assert chosen(folder) == (expected, expected)


@catches("a reward model in bf16 whose memory is counted as in fp32")
@pytest.mark.parametrize(
    ("method", "row"),
    [("sft", '{"text": "abc de"}'), ("reward_model", '{"chosen": "abc de", "rejected": "f"}')],
)
def test_a_stage_says_it_too(method, row, tmp_path, hardware, capsys, monkeypatch):
    counted = []
    monkeypatch.setattr(program, "lines", lambda work, _: counted.append(work.product) or [])
    (tmp_path / "rows.jsonl").write_text(f"{row}\n" * 8)
    own = {"model.path": save_tiny(tmp_path / "model"), "data.path": tmp_path / "rows.jsonl"}
    small = {"update.minibatch-size": 4, "update.microbatch-size": 4}
    folder = run_here(method, own | small | {"run.output-dir": tmp_path / "x"})
    assert capsys.readouterr().out.count("model.precision = auto is bf16") == 1
    assert chosen(folder) == ("bf16", "bf16")
    assert counted == [2]


@catches("a model refused for a precision that nobody asked for")
@pytest.mark.filterwarnings("ignore")
def test_auto_is_fp32_for_a_model_that_fails_in_bf16_alone(flags, hardware, capsys):
    save_family(flags["model.path"], "dbrx")
    folder = run_here("rloo", flags)
    said = "model.precision = auto is fp32: DbrxForCausalLM fails in bfloat16\n"
    assert capsys.readouterr().out.count(said) == 1
    assert chosen(folder) == ("fp32", "fp32")
    run_here("rloo", flags | {"run.total-steps": 2, "run.resume": True})
    assert "model.precision is fp32, as the run began" in capsys.readouterr().out


@catches("a resumed run that chooses its precision anew")
def test_a_resumed_run_keeps_its_precision_on_other_hardware_and_says_so(flags, hardware, capsys):
    run_here("rloo", flags)
    hardware(False)
    folder = run_here("rloo", flags | {"run.total-steps": 2, "run.resume": True})
    said = "model.precision is bf16, as the run began; auto would take fp32 on this cpu"
    assert said in capsys.readouterr().out
    assert chosen(folder) == ("bf16", "bf16")
    folder = run_here("rloo", flags | {"run.total-steps": 3, "run.resume": True} | FP32)
    assert "model.precision is 'fp32' from here on, it was 'bf16'" in capsys.readouterr().out
    assert chosen(folder) == ("fp32", "fp32")


FP32 = {"model.precision": "fp32"}


def test_a_run_goes_on_in_fp32_where_the_hardware_has_no_bf16(flags, hardware, capsys, monkeypatch):
    run_here("rloo", flags)
    hardware(False)
    monkeypatch.setattr(arithmetic, "can_bf16", lambda device: False)
    folder = run_here("rloo", flags | {"run.total-steps": 2, "run.resume": True})
    assert "the run began in bf16, which this cpu cannot compute" in capsys.readouterr().out
    assert chosen(folder) == ("fp32", "fp32")


def test_a_run_of_an_older_version_keeps_the_default_of_then(flags, hardware, capsys):
    folder = run_here("rloo", flags | FP32)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["model"]["tf32"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert run_here("rloo", flags | {"run.total-steps": 2, "run.resume": True}) == folder
    assert "model.precision is fp32, as the run began" in capsys.readouterr().out
    assert chosen(folder) == ("fp32", "fp32")


@pytest.mark.parametrize("fast", [True, False])
def test_a_reference_computes_as_its_policy_does(fast, tmp_path, monkeypatch):
    larger = save_tiny(tmp_path / "larger", num_hidden_layers=3)
    settings = ModelSettings(path=save_tiny(tmp_path / "model"), reference=larger)
    tokenizer = tokenizer_of(settings)
    policy = load_policy(settings, tokenizer, critic=False, temperature=1.0)
    size = sum(p.numel() for p in policy.model.parameters())
    monkeypatch.setattr(precision, "_PAYS_FROM", size + 1)
    monkeypatch.setattr(precision, "fast_bf16", lambda device: fast)
    reference = load_reference(settings, tokenizer, policy)
    assert reference is not None
    assert not reference.policy.bf16  # though by itself it would be large enough


@pytest.mark.parametrize("method", ["ppo", "grpo", "sft", "dpo", "kto", "distillation"])
def test_built_in_worlds_ask_for_fp32_and_models_of_ones_own_for_auto(method):
    world = ["--data.world", "addition"]
    assert settings_of(method, world).model.precision == "fp32"
    assert settings_of(method, [*world, "--model.precision", "bf16"]).model.precision == "bf16"
    own = ["--model.path", "m", "--data.path", "d", "--rewards.functions", "f:f"]
    own = own[: 4 if method in ("sft", "dpo", "kto") else 6]
    own += ["--model.teacher", "t"] if method == "distillation" else []
    assert settings_of(method, own).model.precision == "auto"
    in_the_world = ["--model.path", "m", "--data.path", "world:addition"]
    assert settings_of(method, in_the_world).model.precision == "fp32"
