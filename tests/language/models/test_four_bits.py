"""A base in 4 bits under an adapter: packed by bitsandbytes, computed with as the numbers that the
4 bits stand for, everywhere the same."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lmpg.language.models.footprint.needs import Work, graph, staying
from lmpg.language.models.footprint.said import remedies
from lmpg.language.models.footprint.shape import shape_of
from lmpg.language.models.forward import response_states
from lmpg.language.models.forward.kept_weights import FourBit, num_weights, unpacked
from lmpg.language.models.loading import load_policy, tokenizer_of
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling import sampler
from lmpg.language.sampling.sampler import Sampler
from lmpg.settings.section import UserError
from tests.language.models.test_footprint import ROWS, inputs_of, kept_for_backward
from tests.language.models.test_kept_weights import in_bf16
from tests.language.models.test_lora import INPUTS
from tests.language.models.test_lora_options import gradients, stirred
from tests.support.planted import catches
from tests.support.programs import outcome, own_parts, run_here
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

packed_by_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
EVERY = [
    ("llama", {}),
    ("llama", {"use_dora": True, "target_modules": ("q_proj", "down_proj")}),
    ("qwen2", {"bias": "lora_only", "use_rslora": True}),
    ("gpt2", {"bias": "all", "modules_to_save": ("ln_f",)}),
    ("qwen3", {"modules_to_save": ("lm_head",)}),
]
every_option = pytest.mark.parametrize(("kind", "options"), EVERY)
WIDE = {"hidden_size": 64, "num_attention_heads": 4}


def loaded(path, quantisation="nf4", **settings) -> CausalLMPolicy:
    torch.manual_seed(0)
    lora = settings.pop("lora", LoraSettings(rank=2, alpha=6.0))
    asked = ModelSettings(path=str(path), quantisation=quantisation, lora=lora, **settings)
    return load_policy(asked, tokenizer_of(asked), critic=False, temperature=0.7)


def is_four_bit(module: nn.Module) -> bool:
    return isinstance(module, FourBit)


def with_plain_layers(policy: CausalLMPolicy) -> CausalLMPolicy:
    """The policy after each packed layer gave way to a plain one with the numbers it stands for."""
    for name, layer in list(policy.model.named_modules()):
        if isinstance(layer, FourBit):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight = nn.Parameter(unpacked(layer.weight, torch.float32), requires_grad=False)
            plain.bias = layer.bias
            policy.model.set_submodule(name, plain)
    return policy


@packed_by_bitsandbytes
def test_all_linear_layers_but_the_head_are_kept_in_4_bits_and_near_what_they_were(tmp_path):
    path = save_tiny(tmp_path, **WIDE)
    policy = loaded(path)
    layers = [x for x in policy.modules() if isinstance(x, FourBit)]
    assert len(layers) == 14
    was = AutoModelForCausalLM.from_pretrained(path).model.layers[0].mlp.up_proj.weight
    now = policy.causal_lm.model.layers[0].mlp.up_proj.base_layer.weight
    assert now.nbytes + now.quant_state.absmax.nbytes == was.numel() * (1 / 2 + 4 / 64)
    found = unpacked(now, torch.float32)
    assert 0.05 < (found - was).norm() / was.norm() < 0.12
    assert torch.equal(unpacked(now, torch.bfloat16), found.bfloat16())
    assert not any(x.requires_grad for x in layers[0].parameters())
    adapters = sum(p.numel() for name, p in policy.named_parameters() if "lora_" in name)
    assert num_weights(policy) - adapters == num_weights(tiny_model(**WIDE))


@packed_by_bitsandbytes
@catches("bitsandbytes' own forward, which packs anew without gradients",
         "a packed weight unpacked in bfloat16 for fp32's backward pass")  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("own_forward", [False, True])
@every_option
def test_its_numbers_and_gradients_are_those_of_plain_layers_bit_for_bit(
    kind, options, own_forward, precision, tmp_path, monkeypatch
):
    if own_forward:
        monkeypatch.setattr(response_states, "unsupported", lambda *_: "a test")
    path = in_bf16(tmp_path, kind, hidden_size=64)
    lora = LoraSettings(rank=2, alpha=6.0, **options)
    policies = [loaded(path, lora=lora, precision=precision) for _ in range(2)]
    packed, plain = (stirred(x) for x in policies)
    reference = packed.reference()
    with_plain_layers(plain)
    found = packed.evaluate(INPUTS).logprobs_BT
    with torch.no_grad():
        assert torch.equal(packed.evaluate(INPUTS).logprobs_BT, found)
    assert torch.equal(plain.evaluate(INPUTS).logprobs_BT, found)
    ours, theirs = gradients(packed), gradients(plain)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert torch.equal(ours[name], x), name
    assert torch.equal(reference.logprobs(INPUTS), plain.reference().logprobs(INPUTS))
    assert torch.equal(packed.evaluate(INPUTS).logprobs_BT, found)


@packed_by_bitsandbytes
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_option
def test_the_engine_samples_what_it_samples_from_plain_layers(kind, options, precision, tmp_path):
    path, uniforms = in_bf16(tmp_path, kind, hidden_size=64), torch.rand(4, 8)
    lora = LoraSettings(rank=2, alpha=6.0, **options)
    policies = [stirred(loaded(path, lora=lora, precision=precision)) for _ in range(2)]
    with_plain_layers(policies[1])
    engines = [Sampler(x, 8) for x in policies]
    found, expected = (x.sample([[5, 6], [7]], 2, uniforms) for x in engines)
    assert engines[0].backend == "by the CPU engine"
    if precision == "fp32":
        assert torch.equal(found.logprobs_BT, expected.logprobs_BT)
        plain = policies[0].plain_logprobs(found.inputs)
        torch.testing.assert_close(found.logprobs_BT, plain, atol=3e-5, rtol=1e-5)
        assert sampler.engine_deviation(policies[0]) < 1e-5


@packed_by_bitsandbytes
@catches("an adapter added to a packed weight, and packed again", "a config that says 4 bits still")
@every_option
def test_merged_is_a_plain_model_and_the_adapter_one_that_peft_loads_over_4_bits(
    kind, options, tmp_path
):
    import peft
    from transformers import BitsAndBytesConfig

    path = save_tiny(tmp_path / "base", kind, hidden_size=64)
    policy = stirred(loaded(path, lora=LoraSettings(rank=2, alpha=6.0, **options)))
    policy.save_pretrained(tmp_path / "final", tiny_tokenizer())
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = policy.model(ids).logits
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "final" / "merged").eval()
    torch.testing.assert_close(whole(ids).logits, expected, atol=1e-4, rtol=1e-5)
    before, after = (
        json.loads((folder / "config.json").read_text())
        for folder in (Path(path), tmp_path / "final" / "merged")
    )
    assert before == after
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft and transformers, about each other
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(
            tmp_path / "final", quantization_config=config, dtype=torch.float32
        )
    for module in adapted.modules():
        module.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16
    found = adapted.eval()(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(loaded(path).model(ids).logits, expected, atol=1e-2)


@packed_by_bitsandbytes
def test_a_trained_adapter_goes_on_over_its_base_in_4_bits(tmp_path):
    policy = stirred(loaded(save_tiny(tmp_path / "base", **WIDE)))
    policy.save_pretrained(tmp_path / "final", tiny_tokenizer())
    expected = policy.evaluate(INPUTS).logprobs_BT
    again = loaded(tmp_path / "final", lora=LoraSettings())
    assert torch.equal(again.evaluate(INPUTS).logprobs_BT, expected)
    wide = loaded(tmp_path / "final", "none", lora=LoraSettings())
    assert not torch.equal(wide.evaluate(INPUTS).logprobs_BT, expected)


@packed_by_bitsandbytes
@catches("a model that was packed when it was loaded cannot be saved")
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_a_checkpoint_that_is_in_4_bits_is_the_same_base(storage, tmp_path):
    from transformers import BitsAndBytesConfig

    path = in_bf16(tmp_path / "base", **WIDE)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=storage
    )
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=config, dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / "packed")
    tiny_tokenizer().save_pretrained(tmp_path / "packed")
    expected = loaded(path).evaluate(INPUTS).logprobs_BT
    for quantisation in ("none", "nf4"):
        found = loaded(tmp_path / "packed", quantisation)
        assert torch.equal(found.evaluate(INPUTS).logprobs_BT, expected)
        found.save_pretrained(tmp_path / "final", tiny_tokenizer())
        merged = load_policy(
            ModelSettings(path=str(tmp_path / "final" / "merged")),
            tiny_tokenizer(),
            critic=False,
            temperature=0.7,
        )
        close = merged.evaluate(INPUTS).logprobs_BT  # but for bf16, in which it was saved
        torch.testing.assert_close(close, expected, atol=0.05, rtol=0.01)
    with pytest.raises(UserError, match=r"trained as a whole, but has weights in 4 bits"):
        loaded(tmp_path / "packed", "none", lora=LoraSettings())


@packed_by_bitsandbytes
@catches("packed weights counted by their bytes")
def test_what_it_takes_is_counted_to_the_byte(tmp_path):
    path = in_bf16(tmp_path, hidden_size=64, intermediate_size=160, num_hidden_layers=6)
    policy, plain = loaded(path, precision="bf16"), loaded(path, "none", precision="bf16")
    shape = shape_of(policy.causal_lm)
    assert shape == shape_of(plain.causal_lm)
    length, rest = 40, {"rank": 2, "kept": 2, "product": 2, "packed": True}
    work = Work(shape, rows=ROWS, prompt=length // 8, response=length - length // 8, **rest)
    scales = sum(x.weight.quant_state.absmax.nbytes for x in policy.modules() if is_four_bit(x))
    expected = sum(p.nbytes for p in policy.parameters()) + scales
    assert staying(work)["weights"] == expected
    assert expected < 0.6 * staying(replace(work, packed=False))["weights"]
    found = kept_for_backward(policy, inputs_of(work))
    assert graph(work, shape) == pytest.approx(found, rel=0.07)
    assert "--model.quantisation nf4" in remedies(replace(work, packed=False))
    assert "--model.quantisation nf4" not in remedies(work)


@packed_by_bitsandbytes
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_that_are_computed_again_have_the_same_gradients(precision, tmp_path):
    path = in_bf16(tmp_path, hidden_size=64)
    policy = stirred(loaded(path, precision=precision, gradient_checkpointing=True))
    found, expected = gradients(policy), gradients(with_plain_layers(policy))
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


@packed_by_bitsandbytes
@pytest.mark.slow
def test_a_run_over_4_bits_is_resumed_bit_for_bit(tmp_path):
    parts = own_parts(tmp_path / "parts")
    save_tiny(tmp_path / "parts" / "model", **WIDE)
    flags = {**parts, "model.quantisation": "nf4", "model.lora.rank": 2, "update.epochs": 1}
    whole = run_here("ppo", {**flags, "run.output-dir": tmp_path / "whole"})
    part = {**flags, "run.output-dir": tmp_path / "part"}
    run_here("ppo", {**part, "run.total-steps": 2})
    run_here("ppo", {**part, "run.resume": True})
    assert outcome(tmp_path / "part") == outcome(whole)


@packed_by_bitsandbytes
def test_a_critic_that_would_be_a_copy_of_packed_layers_is_refused(tmp_path):
    path = save_tiny(tmp_path, **WIDE)
    asked = ModelSettings(
        path=path, quantisation="nf4", lora=LoraSettings(rank=2), critic="separate"
    )
    with pytest.raises(UserError, match=r"critic with weights of its own .* model\.critic to sh"):
        load_policy(asked, tokenizer_of(asked), critic=True, temperature=1.0)


@packed_by_bitsandbytes
@catches("8 bits read by the engine as if they were the weights")
def test_a_checkpoint_in_8_bits_is_refused_by_name(tmp_path):
    from transformers import BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        in_bf16(tmp_path / "base", **WIDE),
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )
    model.save_pretrained(tmp_path / "packed")
    tiny_tokenizer().save_pretrained(tmp_path / "packed")
    with pytest.raises(UserError, match=r"weight, … are kept as int8, .* save it unquantised"):
        loaded(tmp_path / "packed", "none")


def test_4_bits_without_an_adapter_are_refused(tmp_path):
    said = r"model\.quantisation = nf4, but model\.lora\.rank is 0, .* Set model\.lora\.rank"
    with pytest.raises(UserError, match=said):
        loaded(save_tiny(tmp_path), lora=LoraSettings())


def test_4_bits_without_bitsandbytes_are_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = r"model\.quantisation = nf4 needs bitsandbytes.* pip install 'lmpg\[bitsandbytes\]'"
    with pytest.raises(UserError, match=said):
        loaded(save_tiny(tmp_path))
