"""No EOS within the first tokens: its probability is 0 there for all who compute log-probs."""

from __future__ import annotations

import pytest
import torch

from lmpg.functional.divergence import generalised_jsd
from lmpg.language.models.loading import load_policy, load_reference, load_tokenizer
from lmpg.language.models.reference import Reference
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling import sampler
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.settings import SamplingSettings
from tests.language.sampling.test_sampling import PROMPTS, policy, responses, uniforms
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.recorded_graphs import RecordedGraphs
from tests.support.tiny import VOCABULARY, configured, save_tiny

ENDS = tuple(range(1, 30))  # of 64 ids: about half of all responses would end at once
LEAST, STEPS = 4, 9


def late(**options):
    it = policy(eos=ENDS, temperature=0.7, **options)
    it.head.forbid_early(it.eos_token_ids, LEAST)
    return it


def dense(it, inputs):
    """Log-probs and entropy from whole logits in which the first steps have no EOS."""
    logprobs, entropies = (torch.zeros(inputs["response_ids"].shape) for _ in range(2))
    rows = zip(inputs["prompt_ids"], inputs["prompt_lengths"], responses_of(inputs))
    for b, (prompt, n, response) in enumerate(rows):
        ids = torch.cat([prompt[len(prompt) - n :], response])[None]
        logits = it.causal_lm(input_ids=ids).logits[0, n - 1 : -1] / 0.7
        barred = torch.zeros_like(logits)
        barred[:LEAST, list(ENDS)] = -torch.inf
        logp = (logits + barred).log_softmax(-1)
        logprobs[b, : len(response)] = logp.gather(1, response[:, None])[:, 0]
        entropies[b, : len(response)] = torch.distributions.Categorical(logits=logp).entropy()
    return logprobs, entropies


def responses_of(inputs):
    return [ids[:n] for ids, n in zip(inputs["response_ids"], inputs["response_lengths"])]


@catches(
    "EOS kept from the sampler alone, not from the update",
    "one step too few or too many without EOS",
)
@pytest.mark.parametrize("engine", ["cpu", "transformers", "cuda"])
def test_no_engine_samples_eos_early_and_what_is_recorded_is_what_was_sampled_from(
    engine, monkeypatch
):
    if engine == "transformers":
        monkeypatch.setattr(sampler, "why_transformers", lambda policy, length: "it is asked for")
    capture = RecordedGraphs() if engine == "cuda" else None
    it = late()
    found = Sampler(it, STEPS, capture=capture).sample(PROMPTS, 8, uniforms(32, STEPS))
    lengths = found.inputs["response_lengths"]
    assert lengths.min() == LEAST + 1
    for ids in responses(found):
        assert not set(ids[:LEAST]) & set(ENDS)
    with torch.no_grad():
        new = it.evaluate(found.inputs)
        logprobs_BT, entropy_BT = dense(it, found.inputs)
    for logprobs, entropy in (
        (found.logprobs_BT, found.entropy_BT),
        (new.logprobs_BT, new.entropy_BT),
        (it.plain_logprobs(found.inputs), new.entropy_BT),
    ):
        torch.testing.assert_close(logprobs, logprobs_BT, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(entropy, entropy_BT, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_distribution_without_eos():
    it = late(critic=True)
    inputs = Sampler(it, STEPS).sample(PROMPTS, 2, uniforms(8, STEPS)).inputs
    found = []
    new = it.evaluate(inputs)
    for logprobs, entropy in ((new.logprobs_BT, new.entropy_BT), dense(it, inputs)):
        it.zero_grad()
        (logprobs.square().sum() + 0.3 * entropy.sum()).backward(retain_graph=True)
        found.append([p.grad.clone() for p in it.model.parameters()])
    for mine, expected in zip(*found):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)


@catches("EOS kept from the policy, not from its reference")
def test_every_reference_keeps_eos_out_of_the_same_steps(tmp_path):
    path = save_tiny(tmp_path / "mine")
    other = configured(save_tiny(tmp_path / "other", seed=7), eos_token_id=9)
    tokenizer = load_tokenizer(path)
    for lora, own in (
        (LoraSettings(), None),
        (LoraSettings(rank=2), None),
        (LoraSettings(), other),
    ):
        settings = ModelSettings(path=path, lora=lora, reference=own)
        it = load_policy(settings, tokenizer, critic=False, temperature=0.7)
        it.head.forbid_early(ENDS, LEAST)
        reference = load_reference(settings, tokenizer, it) or it.reference()
        inputs = Sampler(it, STEPS).sample(PROMPTS, 2, uniforms(8, STEPS)).inputs
        with torch.no_grad():
            expected = dense(reference.policy, inputs)[0]
        found = reference.logprobs(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_teachers_divergence_is_of_distributions_without_eos():
    it, teacher = late(), policy(seed=3, eos=ENDS, temperature=0.7)
    it.learn_from(Reference(it, teacher), 0.5)
    inputs = Sampler(it, STEPS).sample(PROMPTS, 1, uniforms(4, STEPS)).inputs
    found = it.evaluate(inputs).divergence_BT
    states, theirs = it.states(inputs), teacher.states(inputs)
    early = states.step_N < LEAST
    kept = torch.tensor([i for i in range(VOCABULARY) if i not in ENDS])
    for rows, ids in ((early, kept), (~early, torch.arange(VOCABULARY))):
        mine, other = (
            x.head._outputs(y.hidden_ND[rows], False)._replace(
                weight=x.causal_lm.get_output_embeddings().weight[ids]
            )
            for x, y in ((it, states), (teacher, theirs))
        )
        expected = generalised_jsd(mine, other, 0.5, 64)
        torch.testing.assert_close(found.flatten()[states.slots_N[rows]], expected)


def test_a_least_length_leaves_room_for_an_end():
    with pytest.raises(
        ValueError, match=r"min_new_tokens = 8 with sampling\.max_new_tokens = 8: no"
    ):
        SamplingSettings(min_new_tokens=8, max_new_tokens=8)


def test_a_run_writes_no_shorter_responses_and_its_self_test_holds(tmp_path, capsys):
    parts = own_parts(tmp_path / "parts")
    path = parts["model.path"] / "generation_config.json"
    path.write_text('{"eos_token_id": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]}')
    least = {"sampling.min-new-tokens": 5, "algorithm.kl-coef": 0.1, "run.total-steps": 1}
    run_here("rloo", {**parts, **least, "run.output-dir": tmp_path / "run"})
    assert "self-test: ratio 1.000000, KL to reference 0.000000" in capsys.readouterr().out
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"completions/min_length": 6.0' in line
