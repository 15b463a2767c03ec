"""Models that are no causal language models of plain text are refused in one line."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmpg.language.models.loading import load_causal_lm, load_policy
from lmpg.language.models.precision import save_folder
from lmpg.language.models.settings import ModelSettings
from lmpg.language.sampling.sampler import Sampler
from lmpg.settings.section import UserError
from tests.support.causal_families import save_family, tiny_config
from tests.support.planted import catches
from tests.support.tiny import configured, tiny_tokenizer


def loaded(folder, **settings):
    settings = ModelSettings(path=str(folder), **settings)
    return load_policy(settings, tiny_tokenizer(), critic=False, temperature=1.0)


@catches("a model that sees later tokens trained as if it did not")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("xlnet", "XLNetLMHeadModel gives tokens other probabilities when others follow"),
        ("electra", "output layer of ElectraForCausalLM reads 128 numbers and its trunk gives 32"),
        ("bert", "BertLMHeadModel changes hidden states before its output layer"),
        ("reformer", "ReformerModelWithLMHead fails on texts of different lengths.*RuntimeError"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_causal_model_of_plain_text_is_refused(kind, said, tmp_path):
    save_family(tmp_path, kind)
    with pytest.raises(UserError, match=f"model.path: .*{said}") as refused:
        loaded(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_is_told_to_be_a_decoder(tmp_path):
    save_family(tmp_path, "bert-generation")
    assert loaded(tmp_path)
    with pytest.raises(UserError, match="set what its config calls is_decoder or causal"):
        loaded(configured(tmp_path, is_decoder=False))


def test_what_fails_in_bf16_alone_is_told_to_compute_in_fp32(tmp_path):
    save_family(tmp_path, "dbrx")
    assert loaded(tmp_path)
    with pytest.raises(UserError, match=r"set model.precision to fp32\. It said: RuntimeError"):
        loaded(tmp_path, precision="bf16")


def test_a_model_without_a_cache_learns_from_texts_but_does_not_sample(tmp_path):
    save_family(tmp_path, "openai-gpt")
    policy = loaded(tmp_path)
    with pytest.raises(UserError, match="OpenAIGPTModel keeps nothing between tokens"):
        Sampler(policy, 4).sample([[3, 4]], 1, None)


@catches("RWKV's weights halved by its first forward, and saved so")
@torch.no_grad()
def test_a_deep_rwkv_is_saved_as_it_was_loaded(tmp_path):
    config = tiny_config("rwkv")
    config.num_hidden_layers = 8
    deep = AutoModelForCausalLM.from_config(config)
    save_folder(tmp_path, deep, tiny_tokenizer())
    policy = loaded(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    logits = policy.causal_lm(ids).logits
    policy.save_pretrained(tmp_path / "saved", tiny_tokenizer())
    again = load_causal_lm(str(tmp_path / "saved"))
    for name, x in deep.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(plain(ids).logits, logits, rtol=1e-4, atol=1e-4)
