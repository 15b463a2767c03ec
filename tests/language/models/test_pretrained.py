"""Folders that hold a part of a model or another one: each is refused with the names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmpg.language.models.loading import (
    load_causal_lm,
    load_policy,
    load_sequence_classifier,
    load_tokenizer,
)
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.rewards.reward_model import ModelReward
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import configured, save_tiny, tiny_model, tiny_tokenizer

WEIGHTS = "model.safetensors"


def rewritten(folder, change):
    """The folder with `change` applied to each name of its weights; None leaves one out."""
    path = Path(folder) / WEIGHTS
    kept = {change(name): x for name, x in load_file(path).items()}
    save_file({k: v for k, v in kept.items() if k}, path, metadata={"format": "pt"})
    return str(folder)


def start_of_a_reward_model(path):
    return load_sequence_classifier(path, new_head=True)


def with_critic(path):
    model = ModelSettings(path=str(path), critic="separate")
    return load_policy(model, load_tokenizer(str(path)), critic=True, temperature=1.0)


@catches("weights that a model's folder lacks drawn at random")
@pytest.mark.parametrize("load", [load_causal_lm, start_of_a_reward_model])
@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "policy."]
)
def test_a_prefix_that_all_weights_share_is_named(prefix, load, tmp_path):
    path = rewritten(save_tiny(tmp_path), lambda name: prefix + name)
    with pytest.raises(UserError, match=r"lacks 2[01] of the model's weights") as refused:
        load(path)
    said = str(refused.value)
    assert said.startswith(f"model.path = {path}: its file lacks")
    assert f"all names in it begin with '{prefix}'" in said
    assert "\n" not in said


def test_the_prefix_of_a_trunk_alone_is_named_too(tmp_path):
    path = rewritten(
        save_tiny(tmp_path),
        lambda name: name != "lm_head.weight" and name.replace("model.", "_orig_mod."),
    )
    with pytest.raises(UserError, match=r"all names in it begin with '_orig_mod.'"):
        load_causal_lm(path)


@pytest.mark.parametrize("load", [load_causal_lm, start_of_a_reward_model])
def test_a_layer_less_or_more_than_the_config_says_is_refused(load, tmp_path):
    less = rewritten(save_tiny(tmp_path / "less"), lambda name: "layers.1." not in name and name)
    with pytest.raises(UserError, match=r"lacks 9 of .*\(model.layers.1.input_layernorm.weight, "):
        load(less)
    more = configured(save_tiny(tmp_path / "more"), num_hidden_layers=1)
    with pytest.raises(UserError, match=r"holds 9 that the model has no place for \(model.layers"):
        load(more)


def test_a_surplus_layer_of_a_trunk_alone_is_refused_as_well(tmp_path):
    tiny_model().model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds 9 that the model has no place for \(layers.1"):
        start_of_a_reward_model(configured(tmp_path, num_hidden_layers=1))


@pytest.mark.parametrize("load", [load_causal_lm, start_of_a_reward_model])
def test_weights_of_another_shape_are_refused_with_both_shapes(load, tmp_path):
    path = configured(save_tiny(tmp_path), intermediate_size=48)
    with pytest.raises(UserError, match=r"down_proj.weight \(32, 64\) instead of \(32, 48\), "):
        load(path)


def test_an_untied_model_without_its_head_is_refused_and_a_tied_one_is_whole(tmp_path):
    tied = save_tiny(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(Path(tied) / WEIGHTS)
    model = load_causal_lm(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    headless = rewritten(save_tiny(tmp_path), lambda name: name != "lm_head.weight" and name)
    with pytest.raises(UserError, match=r"lacks 1 of the model's weights \(lm_head.weight\), exp"):
        load_causal_lm(headless)


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_is_no_policy(tied, tmp_path):
    path = save_tiny(tmp_path, "reward", tie_word_embeddings=tied)
    with pytest.raises(UserError, match=r"no place for \(score.weight\)"):
        load_causal_lm(path)


def test_a_model_of_another_kind_is_refused(tmp_path):
    path = configured(save_tiny(tmp_path), model_type="bert")
    for load in (load_causal_lm, start_of_a_reward_model):
        with pytest.raises(UserError, match=r"lacks \d+ of the model's weights \(bert.embeddings"):
            load(path)


def test_constants_that_older_versions_saved_are_no_surplus(tmp_path):
    path = Path(save_tiny(tmp_path, "gpt2")) / WEIGHTS
    older = load_file(path)
    older |= {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    older |= {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}
    save_file(older, path, metadata={"format": "pt"})
    assert load_causal_lm(str(tmp_path)).num_parameters() > 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_the_start_of_a_reward_model_may_lack_its_head_alone(kind, tmp_path, capfd, caplog):
    path, trunk = save_tiny(tmp_path / "whole", kind), tiny_model(kind).base_model
    trunk.save_pretrained(tmp_path / "trunk")
    capfd.readouterr()
    model = start_of_a_reward_model(path)
    for name, x in model.base_model.state_dict().items():
        assert torch.equal(x, trunk.state_dict()[name])
    start_of_a_reward_model(str(tmp_path / "trunk"))
    assert capfd.readouterr().err == ""
    assert caplog.text == ""


def test_a_reward_model_with_a_part_of_its_trunk_is_refused(tmp_path):
    save_tiny(tmp_path, "reward")
    path = rewritten(tmp_path, lambda name: "norm" not in name and name)
    with pytest.raises(UserError, match=rf"rewards.models = {path}: its file lacks 5 of"):
        ModelReward.load(path, trust_remote_code=False, device="cpu")


def test_a_start_with_more_labels_than_one_is_refused_with_its_shape(tmp_path):
    tiny_model("reward", num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"score.weight \(3, 32\) instead of \(1, 32\)"):
        start_of_a_reward_model(str(tmp_path))


@pytest.fixture
def policy_with_critic(tmp_path):
    policy = with_critic(save_tiny(tmp_path / "start"))
    policy.save_pretrained(tmp_path / "final", tiny_tokenizer())
    assert torch.equal(
        with_critic(tmp_path / "final").critic.head.weight, policy.critic.head.weight
    )
    return tmp_path / "final"


def test_a_critic_that_lacks_weights_is_refused(policy_with_critic):
    rewritten(policy_with_critic / "critic", lambda name: "layers.0." not in name and name)
    with pytest.raises(UserError, match=r"critic: its file lacks 9 .*, expected a whole critic"):
        with_critic(policy_with_critic)


def test_a_critic_without_its_value_head_is_refused(policy_with_critic):
    (policy_with_critic / "critic" / "value_head.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no .*critic/value_head.safetensors"):
        with_critic(policy_with_critic)


def test_a_value_head_that_does_not_fit_or_is_cut_is_refused(policy_with_critic):
    head = policy_with_critic / "critic" / "value_head.safetensors"
    whole = head.read_bytes()
    head.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"value_head.safetensors is no whole safetensors file"):
        with_critic(policy_with_critic)
    save_file({"weight": torch.zeros(1, 16), "bias": torch.zeros(1)}, head)
    with pytest.raises(UserError, match=r"reads 16 features, expected 32"):
        with_critic(policy_with_critic)


def test_what_a_policy_saves_is_whole(policy_with_critic, tmp_path):
    load_causal_lm(str(policy_with_critic))
    path = save_tiny(tmp_path / "other")
    model = ModelSettings(path=path, lora=LoraSettings(rank=2))
    policy = load_policy(model, load_tokenizer(path), critic=False, temperature=1.0)
    policy.save_pretrained(tmp_path / "lora", tiny_tokenizer())
    load_causal_lm(str(tmp_path / "lora" / "merged"))


def test_an_adapter_is_no_reward_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"rewards.models = .* is a LoRA adapter"):
        load_sequence_classifier(str(tmp_path))


def test_what_else_transformers_says_of_a_model_is_passed_on(tmp_path, caplog):
    """Weights that a config says are tied, but differ, stay untied."""
    path = configured(save_tiny(tmp_path), tie_word_embeddings=True)
    logging.getLogger("transformers").addHandler(caplog.handler)
    model = load_causal_lm(path)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "will NOT tie them" in caplog.text
    assert model.lm_head.weight is not model.model.embed_tokens.weight
