"""A base in bfloat16 is read as it is, and the policy is the one that float32 on the way makes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lmpg.language.models import loading, model_files
from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.settings import LoraSettings, ModelSettings
from tests.language.models.test_lora_options import OPTIONS, stirred
from tests.support.families import tiny_family
from tests.support.planted import catches
from tests.support.tiny import PAD, save_tiny, tiny_tokenizer

CASES = {name: OPTIONS[name] for name in ("dora", "dora, transposed layers")}
CASES |= {family: (family, {}) for family in ("llama, yarn", "gemma3", "phi3, longrope")}


@pytest.fixture
def dtypes(monkeypatch):
    """Counts in which precision models are read."""
    read: Counter[torch.dtype] = Counter()
    real = loading.pretrained_model

    def noted(*args, **named):
        read[named.get("dtype", torch.float32)] += 1
        return real(*args, **named)

    monkeypatch.setattr(loading, "pretrained_model", noted)
    return read


def policy_at(path, **settings):
    torch.manual_seed(0)
    asked, critic = ModelSettings(path=str(path), **settings), "critic" in settings
    return loading.load_policy(asked, tiny_tokenizer(), critic=critic, temperature=1.0)


@catches("factors of adapters rounded to bfloat16", "buffers computed in bfloat16")
@pytest.mark.parametrize("case", CASES)
def test_a_policy_over_a_base_read_in_bfloat16_is_the_same_bit_for_bit(
    case, dtypes, tmp_path, monkeypatch
):
    family, options = CASES[case]
    tiny_family(family).to(torch.bfloat16).save_pretrained(tmp_path)
    lora = LoraSettings(rank=4, **options)
    low = policy_at(tmp_path, lora=lora)
    monkeypatch.setattr(loading, "is_saved_in_bf16", lambda *_: False)
    wide = policy_at(tmp_path, lora=lora)
    assert [*dtypes] == [torch.bfloat16, torch.float32]
    assert_same(low, wide)


def assert_same(low, wide):
    for parts in ("named_parameters", "named_buffers"):
        mine, theirs = dict(getattr(low, parts)()), dict(getattr(wide, parts)())
        assert mine.keys() == theirs.keys()
        for name, x in mine.items():
            y = theirs[name]
            assert (x.dtype, x.requires_grad) == (y.dtype, y.requires_grad), name
            assert torch.equal(x, y), name
    assert low.causal_lm.config.to_dict() == wide.causal_lm.config.to_dict()
    assert (low.frozen_dtype, low.saved_dtype) == (torch.bfloat16, torch.bfloat16)


@catches("a trained adapter's base in bfloat16 read in float32")
@pytest.mark.parametrize("whole", [(), ("norm",)])
def test_so_is_one_over_the_base_of_a_trained_adapter(whole, dtypes, tmp_path, monkeypatch):
    tiny_family("llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    lora = LoraSettings(rank=4, modules_to_save=whole)
    policy = stirred(policy_at(tmp_path / "base", lora=lora))
    policy.save_pretrained(tmp_path / "final", tiny_tokenizer())
    dtypes.clear()
    low = policy_at(tmp_path / "final")
    assert [*dtypes] == [torch.float32 if whole else torch.bfloat16]
    monkeypatch.setattr(loading, "is_saved_in_bf16", lambda *_: False)
    assert_same(low, policy_at(tmp_path / "final"))
    expected = dict(policy.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in low.named_parameters())


@catches("the header of a file of weights is read before and after it is loaded")
def test_the_header_of_each_file_of_weights_is_read_once_until_it_is_written_anew(
    tmp_path, monkeypatch
):
    read: Counter[str] = Counter()
    real = model_files.safe_open

    def noted(path, *rest):
        read[path] += 1
        return real(path, *rest)

    monkeypatch.setattr(model_files, "safe_open", noted)
    model = tiny_family("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    policy_at(tmp_path, lora=LoraSettings(rank=2))
    assert read == {str(tmp_path / "model.safetensors"): 1}
    model.float().save_pretrained(tmp_path)
    assert not model_files.is_saved_in_bf16(str(tmp_path))


@pytest.mark.parametrize("family", ["llama", "llama, yarn", "gemma3"])
def test_a_model_that_does_not_learn_is_read_in_bfloat16_and_gives_the_same_numbers(
    family, dtypes, tmp_path
):
    tiny_family(family).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    settings, inputs = ModelSettings(path=str(tmp_path)), language_inputs([[5, 6]], [[7, 8]], PAD)
    whole = loading.load_policy(settings, tiny_tokenizer(), critic=False, temperature=1.0)
    expected = whole.frozen().evaluate(inputs).logprobs_BT
    dtypes.clear()
    asked = loading.load_policy(
        settings, tiny_tokenizer(), critic=False, temperature=1.0, learns=False
    )
    own = ModelSettings(path=str(tmp_path), reference=str(tmp_path))
    reference = loading.load_reference(own, tiny_tokenizer(), asked)
    assert dtypes[torch.bfloat16] == 2
    assert family == "gemma3" or torch.float32 not in dtypes  # some buffers need another reading
    assert {p.dtype for p in asked.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in asked.parameters())
    assert torch.equal(asked.evaluate(inputs).logprobs_BT, expected)
    assert torch.equal(reference.logprobs(inputs), expected)


def test_what_learns_as_a_whole_or_is_saved_otherwise_is_read_in_float32(dtypes, tmp_path):
    tiny_family("llama").to(torch.bfloat16).save_pretrained(tmp_path / "low")
    lora = LoraSettings(rank=2)
    policy_at(tmp_path / "low")
    policy_at(tmp_path / "low", lora=lora, dtype="fp32")
    policy_at(tmp_path / "low", lora=lora, critic="separate")
    policy_at(tmp_path / "low", lora=LoraSettings(rank=2, modules_to_save=("norm",)))
    save_tiny(tmp_path / "wide")
    policy_at(tmp_path / "wide", lora=lora, dtype="bf16")
    assert [*dtypes] == [torch.float32]
