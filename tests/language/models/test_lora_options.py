"""Options of adapters: biases, whole modules, rank-stabilised scaling, DoRA. The forward of lmpg
and its engines compute what peft's own forward does, and what is saved is that."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from lmpg.language.models.forward import response_states
from lmpg.language.models.lora import with_adapter
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling import sampler
from lmpg.language.sampling.sampler import Sampler
from lmpg.settings.section import UserError
from tests.language.models.test_kept_weights import in_bf16
from tests.language.models.test_lora import INPUTS, load
from tests.support.families import tiny_family
from tests.support.planted import catches
from tests.support.tiny import EOS, PAD, save_tiny, tiny_tokenizer

TIED = {"tie_word_embeddings": True}
OPTIONS = {
    "rslora": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True}),
    "dora, transposed layers": ("gpt2", {"use_dora": True, "use_rslora": True}),
    "dora, one layer for q, k and v": ("phi3", {"use_dora": True}),
    "all biases": ("gpt2", {"bias": "all"}),
    "biases beside adapters": ("qwen2", {"bias": "lora_only", "target_modules": ("q_proj",)}),
    "head": ("llama", {"modules_to_save": ("lm_head",)}),
    "embedding": ("gemma2", {"modules_to_save": ("embed_tokens",)}),
    "both, tied": ("granite, tied", {"modules_to_save": ("embed_tokens",)}),
    "norms": ("qwen3", {"modules_to_save": ("norm",)}),
    "layer norms and positions": ("gpt2", {"modules_to_save": ("ln_1", "ln_f", "wpe")}),
    "an MLP": ("olmo2", {"modules_to_save": ("mlp",), "target_modules": ("q_proj",)}),
    "everything": (
        "gpt2",
        {"bias": "all", "modules_to_save": ("ln_f",), "use_dora": True, "use_rslora": True},
    ),
}
every_option = pytest.mark.parametrize("option", OPTIONS)


def adapted(option: str) -> CausalLMPolicy:
    """A policy whose adapter has these options, as it starts."""
    family, options = OPTIONS[option]
    torch.manual_seed(0)
    model = with_adapter(tiny_family(family), LoraSettings(rank=4, alpha=6.0, **options))
    numbers = {"eos_token_ids": (EOS,), "pad_token_id": PAD, "context_length": 64}
    return CausalLMPolicy(model, None, temperature=0.7, **numbers)


def stirred(policy: CausalLMPolicy, seed: int = 1) -> CausalLMPolicy:
    """The policy after all that learns has moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return policy


def gradients(policy: CausalLMPolicy) -> dict[str, torch.Tensor]:
    policy.evaluate(INPUTS).logprobs_BT.sum().backward()
    found = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
    for p in policy.parameters():
        p.grad = None
    return {name: x for name, x in found.items() if x is not None}


@catches("the original of a module that is trained as a whole read in its copy's place")
@every_option
def test_lmpgs_forward_is_that_of_peft_with_its_gradients(option, monkeypatch):
    policy = adapted(option)
    policy.evaluate(INPUTS)  # looked at as it starts, where many mistakes do not show
    stirred(policy)
    found = policy.evaluate(INPUTS).logprobs_BT
    torch.testing.assert_close(found, policy.plain_logprobs(INPUTS), atol=2e-5, rtol=1e-5)
    ours = gradients(policy)
    calls = []
    own = response_states._padded_states
    monkeypatch.setattr(response_states, "_padded_states", lambda *x: calls.append(1) or own(*x))
    monkeypatch.setattr(response_states, "unsupported", lambda *_: "a test")
    theirs = gradients(policy)
    assert calls == [1]
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, atol=1e-4, rtol=1e-4)


@catches("rank-stabilised scaling read as plain", "DoRA's lengths of inputs instead of outputs",
         "DoRA's length of the weight without its adapter")  # fmt: skip
@every_option
def test_the_engine_samples_from_what_peft_computes(option):
    policy = adapted(option)
    engine, uniforms = Sampler(policy, 10), torch.rand(4, 10)
    engine.sample([[5, 6, 7], [9]], 2, uniforms)
    stirred(policy)
    samples = engine.sample([[5, 6, 7], [9]], 2, uniforms)
    assert engine.backend == "by the CPU engine"
    plain = policy.plain_logprobs(samples.inputs)
    torch.testing.assert_close(samples.logprobs_BT, plain, atol=3e-5, rtol=1e-5)
    assert sampler.engine_deviation(policy) < 1e-5


@catches("the reference with biases that have learned")
@every_option
def test_the_reference_is_the_policy_as_it_was(option):
    policy = adapted(option)
    base = CausalLMPolicy(
        tiny_family(OPTIONS[option][0]),
        None,
        temperature=0.7,
        eos_token_ids=(EOS,),
        pad_token_id=PAD,
        context_length=64,
    )
    reference, first = policy.reference(), policy.evaluate(INPUTS).logprobs_BT
    torch.testing.assert_close(first, base.evaluate(INPUTS).logprobs_BT, atol=1e-5, rtol=1e-5)
    stirred(policy)
    now = policy.evaluate(INPUTS).logprobs_BT
    assert (now - first).abs().max() > 1e-2
    torch.testing.assert_close(reference.logprobs(INPUTS), first, atol=1e-5, rtol=1e-5)
    assert torch.equal(policy.evaluate(INPUTS).logprobs_BT, now)
    assert reference.policy is policy
    assert reference.state() == {}


@catches("tied embeddings torn apart by an adapter")
@every_option
def test_peft_and_transformers_load_what_is_saved(option, tmp_path):
    tiny_family(OPTIONS[option][0]).save_pretrained(tmp_path / "base")
    policy = adapted(option)
    policy.model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    stirred(policy).save_pretrained(tmp_path / "final", tiny_tokenizer())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own, of transformers
        expected = policy.model(ids).logits
        as_peft = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "final").eval()
        assert torch.equal(as_peft(ids).logits, expected)
        known = not OPTIONS[option][1].get("use_dora")  # to transformers' own reader of adapters
        for folder in [tmp_path / "final" / "merged", *([tmp_path / "final"] if known else [])]:
            whole = AutoModelForCausalLM.from_pretrained(folder).eval()
            torch.testing.assert_close(whole(ids).logits, expected, atol=1e-4, rtol=1e-5)
            assert (
                whole.config.tie_word_embeddings
                == tiny_family(OPTIONS[option][0]).config.tie_word_embeddings
            )


@catches("the gradient of a bias beside a weight that is kept in bf16 lost")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"use_dora": True}),
        ("qwen2", {"bias": "lora_only"}),
        ("gpt2", {"bias": "all", "modules_to_save": ("ln_f",)}),
        ("llama", {"modules_to_save": ("lm_head", "norm")}),
    ],
)
def test_over_a_model_that_is_kept_in_bf16_the_numbers_are_those_of_fp32(
    kind, options, precision, tmp_path
):
    path = in_bf16(tmp_path, kind)
    found = []
    for dtype in ("auto", "fp32"):
        settings = {"precision": precision, "dtype": dtype, "path": path}
        policy = stirred(loaded(LoraSettings(rank=2, **options), **settings))
        found.append((policy.evaluate(INPUTS).logprobs_BT, gradients(policy)))
    (low, low_gradients), (wide, wide_gradients) = found
    assert torch.equal(low, wide)
    assert low_gradients.keys() == wide_gradients.keys()
    for name, x in wide_gradients.items():
        assert torch.equal(low_gradients[name], x), name


def loaded(lora: LoraSettings, **settings) -> CausalLMPolicy:
    from lmpg.language.models.loading import load_policy

    torch.manual_seed(0)
    asked = ModelSettings(lora=lora, **settings)
    return load_policy(asked, tiny_tokenizer(), critic=False, temperature=0.7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bias": "all"}, r"model\.lora\.bias = all, but this model has no biases"),
        ({"bias": "lora_only"}, r"bias = lora_only, but the layers with an adapter have no biases"),
        (
            {"modules_to_save": ("lm_heat",)},
            r"^model\.lora\.modules_to_save = \['lm_heat'\]: no module is called lm_heat, "
            r"expected .*'lm_head'.*; did you mean lm_head\?",
        ),
        (
            {"modules_to_save": ("layers",)},
            r"modules_to_save = \['layers'\] does not fit this model",
        ),
        (
            {"rank": 0, "use_dora": True},
            r"model\.lora\.use_dora = True, but model\.lora\.rank is 0, .* Set model\.lora\.rank",
        ),
        ({"rank": 0, "modules_to_save": ("norm",)}, r"model\.lora\.modules_to_save = \['norm'\]"),
    ],
)
def test_options_that_would_do_nothing_or_do_not_fit_are_refused_by_name(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        load(save_tiny(tmp_path), critic=False, **options)


def test_a_tied_embedding_that_peft_would_tear_apart_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"modules_to_save = \['wte'\]: embedding and output layer"):
        load(save_tiny(tmp_path, "gpt2"), critic=False, modules_to_save=("wte",))
