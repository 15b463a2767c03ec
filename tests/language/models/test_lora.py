"""LoRA: the adapter starts at zero, the reference is the model without it, nothing is copied."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.loading import load_policy, load_tokenizer
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling.sampler import Sampler
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import PAD, save_tiny

KINDS = ["llama", "gpt2"]
INPUTS = language_inputs([[5, 6, 7], [9]], [[10, 11, 12], [13, 14]], PAD)


def load(path, rank=4, seed=0, critic=True, **lora):
    torch.manual_seed(seed)
    settings = ModelSettings(path=str(path), lora=LoraSettings(rank=rank, **lora))
    return load_policy(settings, load_tokenizer(str(path)), critic=critic, temperature=0.7)


def step(policy, size=0.05):
    """One descent step on everything that is trained."""
    evaluation = policy.evaluate(INPUTS)
    (evaluation.logprobs_BT.sum() + (evaluation.values_BT - 1).square().sum()).backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter -= size * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_starts_at_zero_and_only_it_and_the_value_head_are_trained(kind, tmp_path):
    path = save_tiny(tmp_path, kind)
    adapted, plain = load(path), load(path, rank=0)
    assert torch.equal(adapted.evaluate(INPUTS).logprobs_BT, plain.evaluate(INPUTS).logprobs_BT)
    names = {name.rsplit(".", 3)[-3] for name in adapted.trainable_state() if "lora" in name}
    assert names == {"lora_A", "lora_B"}
    others = [name for name in adapted.trainable_state() if "lora" not in name]
    assert others == ["value_head.weight", "value_head.bias"]


@catches("reference with the adapter on")
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_same_model_with_the_adapter_off(kind, tmp_path):
    policy = load(save_tiny(tmp_path, kind))
    before = policy.evaluate(INPUTS).logprobs_BT.detach()
    reference = policy.reference()
    step(policy)
    after = policy.evaluate(INPUTS).logprobs_BT
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(reference.logprobs(INPUTS), before)
    assert torch.equal(policy.evaluate(INPUTS).logprobs_BT, after)
    assert reference.policy is policy  # no second copy


def test_reading_the_reference_between_forward_and_backward_changes_no_gradient(tmp_path):
    path = save_tiny(tmp_path)
    gradients = []
    for read in (False, True):
        policy = load(path)
        step(policy)
        loss = policy.evaluate(INPUTS).logprobs_BT.sum()
        if read:
            policy.reference().logprobs(INPUTS)
        loss.backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if gradient is not None:
            assert torch.equal(gradient, gradients[1][name])


def test_the_factors_are_drawn_from_torchs_generator(tmp_path):
    path = save_tiny(tmp_path)
    one, same, other = (load(path, seed=seed).trainable_state() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_trainable_state_goes_on_bit_for_bit(tmp_path):
    path = save_tiny(tmp_path)
    straight, resumed = load(path), load(path, seed=7)
    step(straight)
    resumed.load_trainable_state({k: v.clone() for k, v in straight.trainable_state().items()})
    for policy in (straight, resumed):
        step(policy)
    for name, tensor in straight.trainable_state().items():
        assert torch.equal(tensor, resumed.trainable_state()[name])


@catches("the live model merged into its adapter")
@pytest.mark.parametrize("kind", KINDS)
def test_saving_writes_adapter_and_merged_model_and_leaves_the_live_one_alone(kind, tmp_path):
    path = save_tiny(tmp_path / "start", kind)
    tokenizer = load_tokenizer(path)
    policy = load(path)
    for _ in range(3):
        step(policy)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    policy.save_pretrained(tmp_path / "final", tokenizer)
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    files = {p.name for p in (tmp_path / "final").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "merged"} <= files
    assert "value_head.safetensors" in files
    assert not {p.name for p in tmp_path.rglob("*.bin")}

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final" / "merged").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = policy.model(ids).logits
        torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-5, atol=1e-4)
        with policy.without_adapter():
            assert (policy.model(ids).logits - logits).abs().max() > 1e-3
    ours = Sampler(policy, 20).sample([[5, 6, 7]], 1, None).inputs["response_ids"]
    generated = merged.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=20)
    assert ours[0].tolist() == generated[0, 3:].tolist()

    as_transformers_loads_it = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    with torch.no_grad():
        found = as_transformers_loads_it(ids).logits
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-4)


def test_sampling_uses_the_adapter(tmp_path):
    policy = load(save_tiny(tmp_path))
    for _ in range(3):
        step(policy)
    uniforms = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
    samples = Sampler(policy, 10).sample([[5, 6, 7], [9]], 2, uniforms)
    fresh = policy.evaluate(samples.inputs).logprobs_BT
    torch.testing.assert_close(samples.logprobs_BT, fresh, rtol=1e-5, atol=1e-5)
    plain = policy.plain_logprobs(samples.inputs)
    torch.testing.assert_close(plain, fresh, rtol=1e-5, atol=1e-5)


def test_target_modules_choose_the_layers(tmp_path):
    policy = load(save_tiny(tmp_path), target_modules=("q_proj", "v_proj"), critic=False)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in policy.trainable_state()}
    assert layers == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("targets", "same"),
    [
        (("all-linear",), ()),
        (("self_attn.q_proj",), ("q_proj",)),
        ((r".*\.(q|v)_proj",), ("q_proj", "v_proj")),
        ((r".*q_proj", "v_proj"), ("q_proj", "v_proj")),
    ],
)
def test_targets_may_be_all_linear_layers_parts_of_names_or_expressions(targets, same, tmp_path):
    path = save_tiny(tmp_path)
    found, expected = (
        load(path, target_modules=names, critic=False).trainable_state()
        for names in (targets, same)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())
    one = load(path, target_modules=(r"model\.layers\.0\..*\.q_proj",), critic=False)
    assert {name.split(".self_attn")[0][-1] for name in one.trainable_state()} == {"0"}


@catches("a misspelt LoRA target left out beside one that fits")
@pytest.mark.parametrize(
    "wrong", ["value_proj", "model.layers.7.self_attn.v_proj", "(", "proj", "", "k_proj,v_proj"]
)
def test_every_target_that_fits_no_layer_is_refused_by_name(wrong, tmp_path):
    with pytest.raises(UserError) as refused:
        load(save_tiny(tmp_path), target_modules=("q_proj", wrong), critic=False)
    assert f"no layer is called {wrong}, expected" in str(refused.value)
    assert "['down_proj', 'gate_proj'" in str(refused.value)
    assert ("; several names stand beside each other: k_proj v_proj" in str(refused.value)) == (
        "," in wrong
    )


@pytest.mark.parametrize(
    "targets", [("nonsense",), ("q_proj", "lm_head"), ("embed_tokens",), ("self_attn",)]
)
def test_target_modules_that_do_not_fit_are_refused_by_name(targets, tmp_path):
    with pytest.raises(UserError) as refused:
        load(save_tiny(tmp_path), target_modules=targets)
    said = rf"model.lora.target_modules = .*{targets[-1]}.* \['down_proj', .*'v_proj'\].*"
    assert re.fullmatch(said, str(refused.value))
    assert "base_layer" not in str(refused.value)
