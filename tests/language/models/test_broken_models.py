"""Damaged and foreign files in a model's folder: each is refused in one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmpg.language.models import pretrained
from lmpg.language.models.loading import (
    load_causal_lm,
    load_policy,
    load_sequence_classifier,
    load_tokenizer,
)
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rewards.reward_model import ModelReward
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import configured, save_tiny, tiny_model, tiny_tokenizer

WEIGHTS = "model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123456789\n"


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def sharded(change):
    def apply(folder):
        (folder / WEIGHTS).unlink()
        tiny_model().save_pretrained(folder, max_shard_size="40KB")
        change(folder)

    return apply


def binary(content):
    def apply(folder):
        (folder / WEIGHTS).unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return apply


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def rounded(folder):
    weights = {name: x.to(torch.int8) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


FIRST_SHARD = "model-00001-of-00003.safetensors"
QUANTIZED = {
    "bitsandbytes": (
        {"load_in_4bit": True},
        r"requires bitsandbytes|weights are in 4 bits .*is not, expected both .*take quant",
    ),
    "gptq": ({"bits": 4}, "requires optimum"),
    "torchao": ({}, "No module named 'torchao'"),
    "strange": ({}, r"does not know \(strange\)"),
}
BROKEN_MODELS = {
    "cut": (cut(WEIGHTS, 5000), "model.safetensors is cut short .*5000 bytes"),
    "empty": (cut(WEIGHTS, 0), "model.safetensors is cut short"),
    "a web page": (written(WEIGHTS, b"<!DOCTYPE html>" * 99), "model.safetensors is cut short"),
    "a pointer": (written(WEIGHTS, LFS), "model.safetensors is a Git LFS pointer.*git lfs pull"),
    "a shard's pointer": (sharded(written(FIRST_SHARD, LFS)), f"{FIRST_SHARD} is a Git LFS"),
    "no shard": (sharded(removed(FIRST_SHARD)), f"No such file.*{FIRST_SHARD}"),
    "no index": (
        sharded(removed(f"{WEIGHTS}.index.json")),
        f"parts of the weights .{FIRST_SHARD}, …., but no index",
    ),
    "a broken index": (sharded(written(f"{WEIGHTS}.index.json", b"{")), "index.json is no JSON"),
    "no weights": (removed(WEIGHTS), "no file named model.safetensors"),
    "pickled objects": (binary({"x": Path("x")}), "which lmpg never unpickles"),
    "tensors in a dict": (binary({"state_dict": tiny_model().state_dict()}), "lacks 21 of"),
    "integers": (rounded, r"lm_head.weight, .* hold integers, .*no quantization_config"),
    "no config": (removed("config.json"), "model_type"),
    "a broken config": (written("config.json", b'{"a": "\xe9"}'), "config.json is no JSON"),
    "a config with a list": (written("config.json", b"[]"), "config.json holds a list"),
    "a config that nests": (written("config.json", b"[" * 9999), "config.json"),
    "no heads": (lambda f: configured(f, num_attention_heads=0), "ZeroDivisionError"),
    "text as number": (lambda f: configured(f, hidden_size="32"), "expected int, got str"),
    "no generation_config": (written("generation_config.json", b"{"), "generation_config.json is"),
    "eos as text": (
        written("generation_config.json", b'{"eos_token_id": "</s>"}'),
        r"eos_token_id of its generation_config.json is \['</s>'\]",
    ),
} | {
    method: (
        lambda f, q=more | {"quant_method": method}: configured(f, quantization_config=q),
        said,
    )
    for method, (more, said) in QUANTIZED.items()
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_broken_model_is_refused_in_one_line_that_names_the_file(name, tmp_path):
    change, said = BROKEN_MODELS[name]
    change(Path(save_tiny(tmp_path)))
    with pytest.raises(UserError, match=said) as refused:
        load_policy(
            ModelSettings(path=str(tmp_path)), tiny_tokenizer(), critic=False, temperature=1.0
        )
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 900


BROKEN_TOKENIZERS = {
    "cut": (cut("tokenizer.json", 100), "tokenizer.json is no JSON"),
    "a pointer": (written("tokenizer.json", LFS), "tokenizer.json is a Git LFS pointer"),
    "empty": (written("tokenizer.json", b"{}"), "tokenizer.json is none that the library"),
    "a list": (written("tokenizer.json", b"[]"), "tokenizer.json holds a list"),
    "foreign": (
        written("tokenizer.json", b'{"model": {"type": "Foo"}, "added_tokens": []}'),
        "no tokenizer could be loaded",
    ),
    "settings that are a list": (written("tokenizer_config.json", b"[]"), "tokenizer_config.json"),
    "a template's pointer": (
        written("chat_template.jinja", LFS),
        "its chat_template.jinja is a Git LFS pointer",
    ),
    "missing": (removed("tokenizer.json"), "holds no tokenizer.json; save"),
}


@pytest.mark.parametrize("name", BROKEN_TOKENIZERS)
def test_a_broken_tokenizer_is_refused_in_one_line(name, tmp_path):
    change, said = BROKEN_TOKENIZERS[name]
    change(Path(save_tiny(tmp_path, "reward")))
    for key, load in (
        ("model.path", lambda: load_tokenizer(str(tmp_path))),
        (
            "rewards.models",
            lambda: ModelReward.load(str(tmp_path), trust_remote_code=False, device="cpu"),
        ),
    ):
        with pytest.raises(UserError, match=f"{key} = {tmp_path}: .*{said}") as refused:
            load()
        assert "\n" not in str(refused.value)


def test_pytorch_model_bin_alone_loads(tmp_path):
    binary(tiny_model().state_dict())(Path(save_tiny(tmp_path)))
    found = load_causal_lm(str(tmp_path)).state_dict()
    assert all(torch.equal(found[name], x) for name, x in tiny_model().state_dict().items())


def test_a_file_or_an_empty_folder_in_place_of_a_models_folder_is_refused(tmp_path):
    save_tiny(tmp_path)
    with pytest.raises(UserError, match=r"model.safetensors is a file, expected a folder"):
        load_causal_lm(str(tmp_path / WEIGHTS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is empty and holds no tokenizer.json") as refused:
        load_tokenizer(str(tmp_path / "empty"))
    assert "by --model.tokenizer" in str(refused.value)
    with pytest.raises(UserError, match=r"holds no tokenizer.json") as refused:
        load_tokenizer(str(tmp_path / "empty"), key="model.tokenizer")
    assert "by --model.tokenizer" not in str(refused.value)


@catches("a kernel that a config names fetched from the Hub")
@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": "someone/kernel@main:attend"},
        {"attn_implementation": "paged|someone/kernel"},
        {"attn_implementation": {"": "sdpa", "text_config": "someone/kernel"}},
        {"text_config": {"attn_implementation": "someone/kernel"}},
        {"attn_implementation": "flash_attention_3"},
        {"experts_implementation": "sonicmoe"},
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_kernels_that_would_be_fetched_are_refused_by_name(named, trust, tmp_path, monkeypatch):
    path = configured(save_tiny(tmp_path), **named)
    monkeypatch.setattr(pretrained, "_loaded", None)  # nothing is loaded, or fetched, before
    said = rf" = {path}: .*implementation = .*, a kernel that would be fetched"
    with pytest.raises(UserError, match=f"model.path{said}"):
        load_causal_lm(path, trust)
    with pytest.raises(UserError, match=f"rewards.models{said}"):
        load_sequence_classifier(path, trust_remote_code=trust)


@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention"])
def test_attention_that_torch_brings_is_loaded(name, tmp_path):
    model = load_causal_lm(configured(save_tiny(tmp_path), attn_implementation=name))
    assert model.config._attn_implementation == name
