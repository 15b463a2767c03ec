"""Loading models and tokenizers: what is accepted, and what is refused with which words."""

import pytest
import torch
import transformers

from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.loading import load_causal_lm, load_policy, load_tokenizer
from lmpg.language.models.settings import ModelSettings
from lmpg.language.sampling.sampler import Sampler
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "bos_token_id": None,
}
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2}
INPUTS = language_inputs([[5, 6, 7], list(range(10, 22))], [[10, 11, 12], [13]], PAD)


def load(path, critic=False, temperature=1.0, **settings):
    settings = ModelSettings(path=str(path), **settings)
    return load_policy(settings, load_tokenizer(str(path)), critic=critic, temperature=temperature)


def save(config, folder):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_loaded_policy_knows_its_eos_pad_and_context(tmp_path):
    it = load(save_tiny(tmp_path))
    assert (it.eos_token_ids, it.pad_token_id, it.context_length) == ((EOS,), PAD, CONTEXT)
    assert it.value_head is None


def test_gpt2_names_its_context_otherwise(tmp_path):
    assert load(save_tiny(tmp_path, "gpt2")).context_length == CONTEXT


def test_weights_are_float32_whatever_was_saved(tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    it = load(tmp_path, critic=True)
    assert {p.dtype for p in it.parameters()} == {torch.float32}


@catches("only the tokenizer's EOS honoured")
def test_all_eos_ids_of_the_generation_config_and_the_tokenizer_count(tmp_path):
    model = tiny_model()
    model.generation_config.eos_token_id = [30, 31]
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).eos_token_ids == (EOS, 30, 31)


@catches("an EOS id of -1 that stands for the last token")
def test_eos_ids_that_the_model_cannot_write_are_left_out_and_told(tmp_path, caplog):
    model = tiny_model()
    model.generation_config.eos_token_id = [30, VOCABULARY, -1]
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).eos_token_ids == (EOS, 30)
    assert (
        f"names {VOCABULARY}, -1, but the model's ids go from 0 to {VOCABULARY - 1}" in caplog.text
    )


def test_without_a_pad_token_the_eos_pads(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer(pad=False).save_pretrained(tmp_path)
    assert load(tmp_path).pad_token_id == EOS


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer(eos=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"model.path = {tmp_path}.* no EOS token.*eos_token ="):
        load_tokenizer(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    missing = str(tmp_path / "nowhere")
    for load_it in (load_tokenizer, load_causal_lm):
        with pytest.raises(UserError, match=f"{missing} does not exist"):
            load_it(missing)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: no causal language model could be loaded"):
        load_causal_lm(str(tmp_path))


def test_no_path_is_refused():
    with pytest.raises(UserError, match=r"model.path is not set"):
        load_causal_lm(None)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    save_tiny(tmp_path, vocab_size=40)
    with pytest.raises(UserError, match="largest id is 63, but the model embeds only ids below 40"):
        load(tmp_path)


def test_a_saved_value_head_is_loaded_for_a_critic_and_only_then(tmp_path):
    it = load(save_tiny(tmp_path), critic=True)
    assert (it.evaluate(INPUTS).values_BT == 0).all()
    torch.nn.init.normal_(it.value_head.weight)
    it.save_pretrained(tmp_path, tiny_tokenizer())
    again = load(tmp_path, critic=True)
    assert torch.equal(again.evaluate(INPUTS).values_BT, it.evaluate(INPUTS).values_BT)
    assert load(tmp_path).value_head is None


def test_a_value_head_of_another_size_is_refused(tmp_path):
    it = load(save_tiny(tmp_path), critic=True)
    it.save_pretrained(tmp_path, tiny_tokenizer())
    save_tiny(tmp_path, hidden_size=64)
    with pytest.raises(UserError, match="reads 32 features, expected 64"):
        load(tmp_path, critic=True)


def test_loading_draws_no_random_numbers(tmp_path):
    path = save_tiny(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load(path, critic=True)
    assert torch.equal(torch.get_rng_state(), before)


CONFIGS = {
    "softcap": lambda: transformers.Gemma2Config(
        **SIZES, **GROUPED, head_dim=8, sliding_window=8, final_logit_softcapping=1.0
    ),
    "factor": lambda: transformers.CohereConfig(**SIZES, **GROUPED, logit_scale=0.25),
    "divisor": lambda: transformers.GraniteConfig(**SIZES, **GROUPED, logits_scaling=4.0),
    "sliding window": lambda: transformers.MistralConfig(**SIZES, **GROUPED, sliding_window=8),
    "head with bias": lambda: transformers.PhiConfig(**SIZES, intermediate_size=64),
    "positions from the mask": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, eos_token_id=EOS, pad_token_id=0
    ),
}


@catches("logit factor or softcap of the model forgotten")
@pytest.mark.parametrize("name", CONFIGS)
def test_other_architectures_sample_and_evaluate_as_their_own_logits_say(name, tmp_path):
    it = load(save(CONFIGS[name](), tmp_path), temperature=0.7)
    uniforms = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))
    samples = Sampler(it, 20).sample([[5, 6, 7], list(range(10, 22))], 2, uniforms)
    for logprobs in (it.evaluate(samples.inputs).logprobs_BT, samples.logprobs_BT):
        torch.testing.assert_close(
            logprobs, it.plain_logprobs(samples.inputs), rtol=1e-5, atol=1e-5
        )


@catches("a difference of log-probs too small for their size, but not for a ratio, is let through")
@pytest.mark.parametrize(
    ("precision", "factor"), [("fp32", 3.0), ("fp32", 1.001), ("bf16", 3.0), ("bf16", 1.05)]
)
def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused(
    precision, factor, tmp_path, monkeypatch
):
    path = save_tiny(tmp_path, initializer_range=0.5)
    forward = transformers.LlamaForCausalLM.forward

    def changed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * factor
        return output

    load(path, precision=precision)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", changed)
    with pytest.raises(UserError, match="LlamaForCausalLM changes hidden states before"):
        load(path, precision=precision)


@catches("rounding that a temperature near 0 magnifies taken for an unknown head")
@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-20])
def test_a_temperature_near_zero_refuses_no_model_but_one_with_an_unknown_head(
    temperature, tmp_path, monkeypatch
):
    path = save_tiny(tmp_path, initializer_range=0.5)
    assert load(path, temperature=temperature).temperature == temperature
    forward = transformers.LlamaForCausalLM.forward

    def changed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 1.001
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", changed)
    with pytest.raises(UserError, match="LlamaForCausalLM changes hidden states before"):
        load(path, temperature=temperature)


def test_log_probs_that_are_nan_are_refused_with_both_causes(tmp_path):
    path = save_tiny(tmp_path)
    with pytest.raises(UserError, match=r"are NaN.*sampling.temperature = 1e-42 is too small"):
        load(path, temperature=1e-42)
    model = tiny_model()
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"are NaN.*its weights hold NaN or infinities"):
        load(path)
