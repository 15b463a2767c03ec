"""Weights that do not learn: kept in bfloat16, computed with as if they were kept in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmpg.language.models.forward import response_states
from lmpg.language.models.forward.kept_weights import exact_dtype, keep_frozen, widened
from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.loading import load_policy, load_reference, load_tokenizer
from lmpg.language.models.lora import merged_copy
from lmpg.language.models.sequence_classifier import SequenceScorer
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.rewards.reward_model import ModelReward
from lmpg.language.sampling.sampler import Sampler
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.tiny import PAD, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

INPUTS = language_inputs([[5, 6, 7], [9]], [[10, 11, 12], [13, 14]], PAD)
LOW, WIDE = torch.bfloat16, torch.float32


def in_bf16(folder, kind="llama", **changes) -> str:
    """A folder with a checkpoint in bfloat16."""
    tiny_model(kind, **changes).to(LOW).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def load(path, rank=0, precision="fp32", dtype="auto", critic=True):
    torch.manual_seed(0)
    lora = LoraSettings(rank=rank)
    settings = ModelSettings(path=path, lora=lora, precision=precision, dtype=dtype)
    return load_policy(settings, load_tokenizer(path), critic=critic, temperature=0.7)


def stirred(policy):
    """The policy with an adapter that is not zero."""
    generator = torch.Generator().manual_seed(1)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return policy


def dtypes(module, learning: bool) -> set[torch.dtype]:
    return {p.dtype for p in module.parameters() if p.requires_grad is learning}


def test_auto_keeps_in_bf16_what_bf16_holds_exactly(tmp_path):
    path = in_bf16(tmp_path / "low")
    adapted, whole = load(path, rank=2), load(path)
    assert dtypes(adapted, learning=False) == {LOW}
    assert dtypes(adapted, learning=True) == dtypes(whole, learning=True) == {WIDE}
    assert dtypes(load(path, rank=2, dtype="fp32"), learning=False) == {WIDE}
    assert dtypes(whole.reference().policy, learning=False) == {LOW}
    assert dtypes(whole.reference(refreshed=True).policy, learning=False) == {WIDE}
    other = save_tiny(tmp_path / "wide")
    assert dtypes(load(other, rank=2), learning=False) == {WIDE}
    assert dtypes(load(other, rank=2, dtype="bf16"), learning=False) == {LOW}


@catches("one weight that bf16 rounds is overlooked")
def test_a_single_weight_that_bf16_would_round_keeps_all_in_fp32():
    model = tiny_model().to(LOW).float()
    assert exact_dtype(model) is LOW
    model.lm_head.weight.data[3, 4] += 1e-6
    assert exact_dtype(model) is WIDE


@catches("a frozen weight widened nowhere", "a kept weight's gradient by its input in bfloat16")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("own_forward", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_weights_kept_in_bf16_give_the_numbers_of_those_kept_in_fp32(
    kind, own_forward, precision, tmp_path, monkeypatch
):
    if own_forward:
        monkeypatch.setattr(response_states, "unsupported", lambda *_: "a test")
    path = in_bf16(tmp_path, kind)
    low, wide = (
        stirred(load(path, rank=2, precision=precision, dtype=x)) for x in ("auto", "fp32")
    )
    low.value_head.weight.data += 0.1
    wide.value_head.weight.data += 0.1
    found, expected = low.evaluate(INPUTS), wide.evaluate(INPUTS)
    assert torch.equal(found.logprobs_BT, expected.logprobs_BT)
    assert torch.equal(found.values_BT, expected.values_BT)
    for policy, x in ((low, found), (wide, expected)):
        (x.logprobs_BT.sum() + x.values_BT.sum()).backward()
        assert torch.equal(policy.plain_logprobs(INPUTS), low.plain_logprobs(INPUTS))
    gradients = dict(wide.named_parameters())
    for name, p in low.named_parameters():
        if p.requires_grad and "value" not in name:
            assert torch.equal(p.grad, gradients[name].grad), name
    reference = wide.reference().logprobs(INPUTS)
    assert torch.equal(low.reference().logprobs(INPUTS), reference)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_kept_in_bf16_samples_what_it_samples_in_fp32(precision, tmp_path):
    path, uniforms = in_bf16(tmp_path), torch.rand(4, 8)
    found, expected = (
        Sampler(stirred(load(path, 2, precision, x)), 8).sample([[5, 6], [7]], 2, uniforms)
        for x in ("auto", "fp32")
    )
    assert torch.equal(found.inputs["response_ids"], expected.inputs["response_ids"])
    assert torch.equal(found.logprobs_BT, expected.logprobs_BT)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_references_are_kept_as_their_checkpoint_is_and_agree_bit_for_bit(precision, tmp_path):
    path = in_bf16(tmp_path / "policy")
    policy = load(path, precision=precision)
    expected = policy.evaluate(INPUTS).logprobs_BT
    assert torch.equal(policy.reference().logprobs(INPUTS), expected)
    settings = ModelSettings(path=path, reference=path, precision=precision)
    own = load_reference(settings, tiny_tokenizer(), policy)
    assert dtypes(own.policy, learning=False) == {LOW}
    assert torch.equal(own.logprobs(INPUTS), expected)


@catches("a reference that is rounded where the policy is not")
def test_a_policy_whose_reference_is_rounded_starts_from_the_same_numbers_in_fp32(tmp_path):
    path = save_tiny(tmp_path / "wide")
    policy, exact = load(path, dtype="bf16"), load(path)
    theirs = dict(exact.named_parameters())
    for name, p in policy.model.named_parameters():
        assert p.dtype is WIDE
        assert torch.equal(p, theirs[f"model.{name}"].to(LOW).float())
    reference = policy.reference()
    assert dtypes(reference.policy, learning=False) == {LOW}
    now = policy.evaluate(INPUTS).logprobs_BT
    assert torch.equal(reference.logprobs(INPUTS), now)
    assert not torch.equal(exact.evaluate(INPUTS).logprobs_BT, now)
    policy.save_pretrained(tmp_path / "final", tiny_tokenizer())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").dtype is WIDE


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_run_on_a_rounded_checkpoint_passes_its_self_test(critic, tmp_path, capsys):
    flags = {**own_parts(tmp_path), "model.dtype": "bf16", "model.critic": critic}
    run_here("ppo", {**flags, "run.output-dir": tmp_path / "run", "run.total-steps": 1})
    assert "KL to reference 0.000000" in capsys.readouterr().out


def test_a_refreshed_reference_holds_what_the_policy_has_learned(tmp_path):
    policy = load(in_bf16(tmp_path))
    reference = policy.reference(refreshed=True)
    for p in policy.parameters():
        p.data += 1e-4 * torch.randn_like(p)
    reference.refresh(policy)
    assert torch.equal(reference.logprobs(INPUTS), policy.evaluate(INPUTS).logprobs_BT)


def test_reward_models_are_kept_as_their_checkpoint_is_and_score_the_same(tmp_path):
    path = in_bf16(tmp_path, "reward")
    ids = [[5, 6, 7], [8, 9]]
    found = [
        ModelReward.load(path, trust_remote_code=False, device="cpu", dtype=x).scorer
        for x in ("auto", "fp32")
    ]
    kept = [{p.dtype for p in scorer.model.parameters()} for scorer in found]
    assert kept == [{LOW}, {WIDE}]
    assert found[0].score(ids) == found[1].score(ids)
    assert isinstance(found[0], SequenceScorer)


def test_what_transformers_asks_of_a_kept_weight_is_answered_as_of_one_in_fp32(tmp_path):
    model = tiny_model().requires_grad_(False)
    weight = keep_frozen(model, LOW).lm_head.weight
    x = torch.randn(3, 32)
    with widened(True):
        assert weight.dtype is WIDE
        assert weight[:4].dtype is WIDE
        assert weight.T.dtype is WIDE
        assert weight.shape == (VOCABULARY, 32)
        assert torch.equal(x @ weight.T, x @ weight.float().T)
        assert torch.equal(x * weight[0], x * weight[0].float())
    assert weight.dtype is LOW


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(("final", "expected"), [("auto", LOW), ("bf16", LOW), ("fp32", WIDE)])
def test_what_is_saved_is_in_the_checkpoints_precision_or_the_one_asked_for(
    final, expected, rank, tmp_path
):
    path = in_bf16(tmp_path / "start")
    settings = ModelSettings(path=path, lora=LoraSettings(rank=rank), final_dtype=final)
    policy = load_policy(settings, load_tokenizer(path), critic=True, temperature=1.0)
    for p in stirred(policy).parameters():
        p.data += 0.01 * p.requires_grad
    policy.save_pretrained(tmp_path / "final", tiny_tokenizer())
    folder = tmp_path / "final" / ("merged" if rank else "")
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in saved.parameters()} == {expected}
    before, after = (json.loads((x / "config.json").read_text()) for x in (Path(path), folder))
    assert before | {"dtype": after["dtype"]} == after
    assert before["dtype"] == after["dtype"] or final == "fp32"
    found = saved.float()(torch.tensor([[5, 6, 7]])).logits
    with policy.in_float32():
        exact = policy.model(torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(found, exact, atol=0.2 if expected is LOW else 1e-5, rtol=1e-5)


def test_an_fp32_checkpoint_stays_one(tmp_path):
    path = save_tiny(tmp_path / "start")
    load(path).save_pretrained(tmp_path / "final", tiny_tokenizer())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").dtype is WIDE


@pytest.mark.parametrize("rank", [0, 2])
def test_an_fp16_checkpoint_stays_one_unless_another_precision_is_asked_for(rank, tmp_path):
    tiny_model().half().save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    for final, expected in {"auto": torch.float16, "bf16": LOW, "fp32": WIDE}.items():
        settings = ModelSettings(
            path=str(tmp_path / "start"), lora=LoraSettings(rank=rank), final_dtype=final
        )
        policy = load_policy(settings, tiny_tokenizer(), critic=False, temperature=1.0)
        assert dtypes(policy, learning=False) | {WIDE} == {WIDE}  # bf16 would round it
        policy.save_pretrained(tmp_path / final, tiny_tokenizer())
        folder = tmp_path / final / ("merged" if rank else "")
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert {p.dtype for p in saved.parameters()} == {expected}


@catches("an adapter merged in bfloat16 into what is saved in float16")
def test_a_merged_copy_has_the_numbers_of_one_in_float32_rounded_once(tmp_path):
    tiny_model().half().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = stirred(load(str(tmp_path), rank=2, dtype="bf16"))
    assert (policy.frozen_dtype, policy.saved_dtype) == (LOW, torch.float16)
    whole = dict(merged_copy(policy.model, WIDE).named_parameters())
    for dtype in (torch.float16, LOW):
        found = merged_copy(policy.model, dtype)
        assert {p.dtype for p in found.parameters()} == {dtype}
        for name, p in found.named_parameters():
            assert torch.equal(p, whole[name].to(dtype)), name
