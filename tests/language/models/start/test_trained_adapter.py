"""A run that starts from a trained adapter: it goes on from there, and is compared with that."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lmpg.language.models.loading import load_policy, load_reference, tokenizer_of
from lmpg.language.models.model_files import start_files
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.suitable import rate_that_suits
from lmpg.settings.section import UserError
from tests.language.models.test_lora import INPUTS
from tests.language.models.test_lora_options import stirred
from tests.support.hub_server import hub_server
from tests.support.planted import catches
from tests.support.programs import outcome, own_parts, run_here
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

OPTIONS = {
    "plain": ("llama", {}),
    "rslora, two layers": ("llama", {"use_rslora": True, "target_modules": ("q_proj", "up_proj")}),
    "dora": ("llama", {"use_dora": True}),
    "biases and norms": ("gpt2", {"bias": "all", "modules_to_save": ("ln_f",)}),
}


def loaded(path, **settings):
    """The policy at `path`, and its tokenizer."""
    torch.manual_seed(3)
    asked = ModelSettings(path=str(path), **settings)
    tokenizer = tokenizer_of(asked)
    policy = load_policy(asked, tokenizer, critic=True, temperature=0.7)
    return policy, tokenizer


def trained(folder, kind="llama", **lora):
    """A folder with an adapter that has learned, and the policy that it was saved of."""
    base = save_tiny(folder / "base", kind)
    lora = LoraSettings(rank=4, alpha=6.0, **lora)
    policy, tokenizer = loaded(base, lora=lora)
    stirred(policy).save_pretrained(folder / "final", tokenizer)
    return folder / "final", policy


@catches("a trained adapter begun anew", "the reference below a trained adapter")
@pytest.mark.parametrize("option", OPTIONS)
def test_it_goes_on_from_the_adapter_and_its_reference_stays_there(option, tmp_path):
    kind, lora = OPTIONS[option]
    final, before = trained(tmp_path, kind, **lora)
    policy, tokenizer = loaded(final)
    expected = before.evaluate(INPUTS)
    assert torch.equal(policy.evaluate(INPUTS).logprobs_BT, expected.logprobs_BT)
    assert torch.equal(policy.evaluate(INPUTS).values_BT, expected.values_BT)
    state = policy.trainable_state()
    assert {n: x.shape for n, x in state.items()} == {
        n: x.shape for n, x in before.trainable_state().items()
    }
    reference = policy.reference()
    stirred(policy, seed=2)
    assert torch.equal(reference.logprobs(INPUTS), expected.logprobs_BT)
    found = policy.evaluate(INPUTS).logprobs_BT
    assert (found - expected.logprobs_BT).abs().max() > 1e-2
    torch.testing.assert_close(found, policy.plain_logprobs(INPUTS), atol=2e-5, rtol=1e-5)
    policy.save_pretrained(tmp_path / "again", tokenizer)
    assert torch.equal(loaded(tmp_path / "again")[0].evaluate(INPUTS).logprobs_BT, found)


def test_it_is_sampled_by_the_engine(tmp_path):
    policy = loaded(trained(tmp_path, use_dora=True)[0])[0]
    sampler = Sampler(policy, 8)
    samples = sampler.sample([[5, 6], [7]], 2, torch.rand(4, 8))
    assert sampler.backend == "by the CPU engine"
    plain = policy.plain_logprobs(samples.inputs)
    torch.testing.assert_close(samples.logprobs_BT, plain, atol=3e-5, rtol=1e-5)


@catches("an adapter's dropout left on")
def test_an_adapter_of_pefts_own_needs_no_tokenizer_and_loses_its_dropout(tmp_path):
    base = save_tiny(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], lora_dropout=0.5, task_type="CAUSAL_LM"
    )
    with pytest.warns(FutureWarning):
        model = peft.get_peft_model(tiny_model(), config)
    torch.nn.init.normal_(
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B.default.weight
    )
    config.base_model_name_or_path = base
    model.save_pretrained(tmp_path / "adapter")
    policy, tokenizer = loaded(tmp_path / "adapter")
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert policy.model.peft_config["default"].lora_dropout == 0
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(policy.model(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within peft
def test_an_adapter_of_another_task_is_saved_as_one_of_a_causal_lm(task, tmp_path):
    final, _ = trained(tmp_path)
    config = final / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "task_type": task}))
    policy, tokenizer = loaded(final)
    policy.save_pretrained(tmp_path / "again", tokenizer)
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "again")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, policy.model(ids).logits)


@catches("an adapter that does not learn rounded as its base model is kept")
def test_an_adapter_over_a_base_in_bf16_is_as_exact_where_it_does_not_learn(tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    policy, tokenizer = loaded(tmp_path / "base", lora=LoraSettings(rank=4))
    stirred(policy).save_pretrained(tmp_path / "final", tokenizer)
    policy, tokenizer = loaded(tmp_path / "final")
    expected = policy.evaluate(INPUTS).logprobs_BT
    settings = ModelSettings(path=str(tmp_path / "final"), reference=str(tmp_path / "final"))
    own = load_reference(settings, tokenizer, policy)
    assert own.policy.low
    assert torch.equal(own.logprobs(INPUTS), expected)


def test_references_may_be_adapters_too(tmp_path):
    final, before = trained(tmp_path)
    policy, tokenizer = loaded(tmp_path / "base")
    settings = ModelSettings(path=str(tmp_path / "base"), reference=str(final))
    own = load_reference(settings, tokenizer, policy)
    assert torch.equal(own.logprobs(INPUTS), before.evaluate(INPUTS).logprobs_BT)
    assert not any(p.requires_grad for p in own.policy.parameters())


def test_settings_that_say_the_same_or_nothing_are_taken(tmp_path):
    final, _ = trained(tmp_path, target_modules=("q_proj",), modules_to_save=("norm",))
    lora = {"rank": 4, "alpha": 6.0, "target_modules": ("self_attn.q_proj",)}
    loaded(final, lora=LoraSettings(**lora, modules_to_save=("norm",)))


@catches("a rank beside a trained adapter passed over in silence")
@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 8}, r"model\.lora\.rank = 8, but model\.path = .*final is a trained adapter that "
         r"has 4, expected the same; leave model\.lora\.rank out"),
        ({"alpha": 7.0}, r"model\.lora\.alpha = 7\.0, .* has 6"),
        ({"use_dora": True}, r"model\.lora\.use_dora = True, .* has False"),
        ({"modules_to_save": ("norm",)}, r"modules_to_save = \['norm'\], .* has \[\]"),
        ({"target_modules": ("q_proj",)}, r"target_modules = \['q_proj'\] are not the layers"),
    ],
)  # fmt: skip
def test_settings_that_ask_for_another_adapter_are_refused(lora, said, tmp_path):
    final, _ = trained(tmp_path)
    with pytest.raises(UserError, match=said):
        loaded(final, lora=LoraSettings(**lora))


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_no_whole_adapter_is_refused_by_name(tmp_path):
    final, _ = trained(tmp_path)
    weights = load_file(final / "adapter_model.safetensors")
    name, other = sorted(weights)[:2]

    def refused(said):
        with pytest.raises(UserError, match=said) as error:
            loaded(final)
        assert "\n" not in str(error.value)

    save_file({k: x for k, x in weights.items() if k != name}, final / "adapter_model.safetensors")
    refused(rf"its adapter_model\.safetensors lacks {name}, expected")
    save_file(weights | {"x": torch.zeros(2)}, final / "adapter_model.safetensors")
    refused(r"holds x, which has no place")
    save_file(weights | {other: torch.zeros(2)}, final / "adapter_model.safetensors")
    refused(r"of shape \(2,\), expected \(")
    (final / "adapter_model.safetensors").write_bytes(b"no safetensors")
    refused(r"adapter_model\.safetensors cannot be read")
    (final / "adapter_model.safetensors").unlink()
    refused(r"adapter_model\.safetensors is missing, expected an adapter saved as safetensors")
    save_file(weights, final / "adapter_model.safetensors")
    edited(final, trainable_token_indices=[1])
    refused(r"has trainable_token_indices = \[1\], which lmpg does not know")
    edited(final, trainable_token_indices=None, peft_type="LOHA")
    refused(r"is an adapter of the kind LOHA, expected LORA; merge it")
    shutil.rmtree(tmp_path / "base")
    edited(final, peft_type="LORA")
    refused(r"base_model_name_or_path in its adapter_config\.json = .*base does not exist")
    edited(final, base_model_name_or_path=None)
    refused(r"names no base_model_name_or_path, expected the model")
    (final / "adapter_config.json").write_text("{")
    refused(r"its adapter_config\.json cannot be read \(JSONDecodeError")


def test_its_fingerprint_is_that_of_adapter_and_base_and_its_learning_rate_an_adapters(tmp_path):
    final, _ = trained(tmp_path)
    files = start_files(ModelSettings(path=str(final)))["model.path"]
    assert files["adapter_model.safetensors"] == final / "adapter_model.safetensors"
    assert files["base model/model.safetensors"] == tmp_path / "base" / "model.safetensors"
    assert rate_that_suits({"model": {"path": str(final)}}, 1e-6) == 1e-5
    assert rate_that_suits({"model": {"path": str(tmp_path / "base")}}, 1e-6) == 1e-6


@pytest.mark.slow
def test_a_run_from_an_adapter_is_resumed_bit_for_bit_and_leaves_an_adapter(tmp_path):
    parts = own_parts(tmp_path / "parts")
    final, _ = trained(tmp_path)
    flags = {**parts, "model.path": final, "algorithm.kl-in": "loss", "update.epochs": 1}
    whole = run_here("ppo", {**flags, "run.output-dir": tmp_path / "whole"})
    part = {**flags, "run.output-dir": tmp_path / "part"}
    run_here("ppo", {**part, "run.total-steps": 2})
    run_here("ppo", {**part, "run.resume": True})
    assert outcome(tmp_path / "part") == outcome(whole)
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    config = json.loads((whole / "final" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert (whole / "final" / "merged" / "model.safetensors").is_file()


def held_by_the_hub(folder):
    return {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()}


@catches("an adapter on the Hub taken for a whole model", "its base model's files not checked")
def test_an_adapter_and_its_base_are_loaded_from_the_hub_by_id(tmp_path, monkeypatch):
    save_tiny(tmp_path / "base")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_server(monkeypatch) as hub:
        hub.repositories["me/base"] = held_by_the_hub(tmp_path / "base")
        policy, tokenizer = loaded("me/base", lora=LoraSettings(rank=2))
        stirred(policy).save_pretrained(tmp_path / "final", tokenizer)
        hub.repositories["me/adapter"] = held_by_the_hub(tmp_path / "final")
        expected = policy.evaluate(INPUTS).logprobs_BT
        again, tokenizer = loaded("me/adapter")
        assert torch.equal(again.evaluate(INPUTS).logprobs_BT, expected)
        assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
        files = start_files(ModelSettings(path="me/adapter"))["model.path"]
        assert {"adapter_model.safetensors", "base model/model.safetensors"} <= files.keys()
        reference = load_reference(ModelSettings(reference="me/adapter"), tokenizer, policy)
        assert torch.equal(reference.logprobs(INPUTS), expected)
        with pytest.raises(UserError, match=r"me/adapter \(model\.revision = v9\)"):
            loaded("me/adapter", revision="v9")
        del hub.repositories["me/base"]["model.safetensors"]
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(UserError, match="base_model_name_or_path in its adapter_config"):
            loaded("me/adapter")
