"""What a run leaves in final/ is the policy at its end, for plain transformers and for lmpg."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lmpg.language.program
from lmpg.language.models.critic import load_value_head
from lmpg.language.models.loading import load_policy
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling.sampler import Sampler
from lmpg.runs.hub.card import NAME as CARD
from tests.support.planted import catches
from tests.support.programs import module_at, own_parts, run_here, weights
from tests.support.tiny import tiny_tokenizer

PROMPTS = ["a", "abc de", "klm 12"]
LENGTHS = {"sampling.max-new-tokens": 12, "update.learning-rate": 1e-2}
LORA = {"model.lora.rank": 8, "model.lora.alpha": 32}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Parts whose model has what models of the Hub have: templates, and defaults of sampling."""
    found = {**own_parts(tmp_path_factory.mktemp("parts")), **LENGTHS}
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.model_max_length, tokenizer.padding_side = 77, "left"
    tokenizer.save_pretrained(found["model.path"])
    path = found["model.path"] / "generation_config.json"
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    return found


@pytest.fixture(scope="module")
def plain(parts, tmp_path_factory):
    """Folder of a PPO run of the whole model."""
    return run_here("ppo", {**parts, "run.output-dir": tmp_path_factory.mktemp("plain")})


@pytest.fixture(scope="module")
def adapted(parts, tmp_path_factory):
    """Folder of a PPO run with an adapter."""
    return run_here("ppo", {**parts, **LORA, "run.output-dir": tmp_path_factory.mktemp("adapted")})


def policy_at_the_end(model_path, folder, **lora):
    """The start model with the weights of the last checkpoint: what the run ended with."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    settings = ModelSettings(path=str(model_path), lora=LoraSettings(**lora))
    policy = load_policy(settings, tokenizer, critic=True, temperature=1.0)
    policy.load_trainable_state(weights(folder))
    return policy, tokenizer


def texts_of_policy(policy, tokenizer):
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    samples = Sampler(policy, 12).sample(prompts, 1, None)
    lengths = samples.inputs["response_lengths"].tolist()
    rows = [ids[:n] for ids, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def texts_of_transformers(model, tokenizer):
    texts = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**given, max_new_tokens=12, do_sample=False)[0]
        response = ids[given["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(response, skip_special_tokens=True))
    return texts


def test_plain_transformers_writes_the_text_that_the_policy_ended_with(parts, plain):
    policy, tokenizer = policy_at_the_end(parts["model.path"], plain)
    start = AutoModelForCausalLM.from_pretrained(parts["model.path"])
    model = AutoModelForCausalLM.from_pretrained(plain / "final")
    texts = texts_of_transformers(model, AutoTokenizer.from_pretrained(plain / "final"))
    assert texts == texts_of_policy(policy, tokenizer)
    assert texts != texts_of_transformers(start, tokenizer)
    ended = {k.removeprefix("model."): x for k, x in weights(plain).items()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, ended[name])


def files(folder):
    return {str(x.relative_to(folder)): x for x in folder.rglob("*") if x.is_file()}


@catches("a chat template, generation_config or tokenizer file of the model lost in final/")
@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_final_is_what_save_pretrained_leaves_of_the_base_model_but_for_weights_and_card(
    parts, kind, tmp_path, request
):
    final = request.getfixturevalue(kind) / "final"
    final = final / "merged" if kind == "adapted" else final
    AutoModelForCausalLM.from_pretrained(parts["model.path"]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(parts["model.path"]).save_pretrained(tmp_path)
    expected, found = files(tmp_path), files(final)
    assert found.keys() - {"value_head.safetensors"} == expected.keys() | {CARD}
    assert {"generation_config.json", "additional_chat_templates/tool_use.jinja"} < found.keys()
    for name, path in expected.items():
        assert name == "model.safetensors" or found[name].read_bytes() == path.read_bytes(), name


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_learned_nothing_is_saved_as_its_base_model_byte_by_byte(
    parts, dtype, rank, tmp_path
):
    base, expected = tmp_path / "base", tmp_path / "expected"
    shutil.copytree(parts["model.path"], base)
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(expected)
    tokenizer.save_pretrained(expected)
    settings = ModelSettings(path=str(base), lora=LoraSettings(rank=rank))
    policy = load_policy(settings, tokenizer, critic=False, temperature=1.0)
    policy.save_pretrained(tmp_path / "final", tokenizer)
    found = files(tmp_path / "final" / "merged" if rank else tmp_path / "final")
    contents = {name: path.read_bytes() for name, path in found.items()}
    assert contents == {name: path.read_bytes() for name, path in files(expected).items()}


@pytest.mark.parametrize("kind", ["plain", "adapted"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within peft
def test_the_card_says_how_to_load_the_folder_and_what_it_scored(parts, kind, tmp_path, request):
    run = request.getfixturevalue(kind)
    card = ModelCard.load(run / "final" / CARD)
    code = card.text.split("```python\n")[1].partition("```")[0]
    (tmp_path / "load.py").write_text(code.replace("FOLDER", str(run / "final")))
    loaded = module_at(tmp_path / "load.py")
    merged = run / "final" / "merged" if kind == "adapted" else run / "final"
    expected = AutoModelForCausalLM.from_pretrained(merged)
    assert texts_of_transformers(loaded.model, loaded.tokenizer) == texts_of_transformers(
        expected, loaded.tokenizer
    )
    summary = json.loads((run / "summary.json").read_text())
    row = f"| reward | {summary['before']['reward']:.4g} | {summary['after']['reward']:.4g} |"
    assert row in card.text
    assert "learning_rate: 0.01" in card.text
    assert str(parts["model.path"].parent) not in card.content
    assert card.data.library_name == ("peft" if kind == "adapted" else "transformers")
    assert card.data.tags[:2] == ["lmpg", "ppo"]


@catches("the value head not saved")
def test_the_value_head_comes_back_bit_for_bit_and_training_goes_on_with_it(
    parts, plain, tmp_path, capsys
):
    ended = weights(plain)
    head = load_value_head(plain / "final")
    assert head.weight.abs().max() > 0
    assert torch.equal(head.weight, ended["value_head.weight"])
    assert torch.equal(head.bias, ended["value_head.bias"])
    on = {**parts, "model.path": plain / "final", "update.learning-rate": 1e-9}
    again = run_here("ppo", {**on, "run.total-steps": 1, "run.output-dir": tmp_path / "again"})
    assert "ratio 1.000000, KL to reference 0.000000" in capsys.readouterr().out
    assert (weights(again)["value_head.weight"] - head.weight).abs().max() < 1e-7


@catches("adapter taken off instead of merged")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within peft
def test_an_adapter_is_saved_alone_and_merged(parts, adapted):
    policy, tokenizer = policy_at_the_end(parts["model.path"], adapted, rank=8, alpha=32)
    texts = texts_of_policy(policy, tokenizer)
    start = AutoModelForCausalLM.from_pretrained(parts["model.path"])
    assert texts != texts_of_transformers(start, tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(adapted / "final" / "merged")
    assert texts_of_transformers(merged, tokenizer) == texts
    by_peft = PeftModel.from_pretrained(start, adapted / "final")
    assert texts_of_transformers(by_peft, tokenizer) == texts
    saved = load_file(adapted / "final" / "adapter_model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    assert (adapted / "final" / "value_head.safetensors").is_file()


@catches(
    "reference copied although there is an adapter",
    "reference not copied although there is no adapter",
)
@pytest.mark.parametrize("lora", [LORA, {}], ids=["adapter", "whole model"])
def test_the_reference_stays_and_with_an_adapter_it_is_no_second_model(
    parts, lora, tmp_path, monkeypatch
):
    found = {}

    def look(online, *_):
        reference, policy = online.source.reference, online.policy
        inputs = online.source.collect(1).rollout.inputs
        before = reference.logprobs(inputs)
        online.run()
        online.tracker.close()
        found["the same model"] = reference.policy is policy
        found["it stayed"] = torch.equal(reference.logprobs(inputs), before)
        found["policy's way"] = (policy.evaluate(inputs).logprobs_BT - before).abs().max().item()

    monkeypatch.setattr(lmpg.language.program, "run", look)
    run_here("ppo", {**parts, **lora, "run.output-dir": tmp_path / "run"})
    assert found["the same model"] == bool(lora)
    assert found["it stayed"]
    assert found["policy's way"] > 0.1
