"""Trunks whose numbers padding changes are found, and never given any before a text."""

from __future__ import annotations

import pytest
import torch

from lmpg.language.models import sequence_classifier
from lmpg.language.models.architectures import trunk_of
from lmpg.language.models.forward import response_states
from lmpg.language.models.forward.padding import bears_padding
from lmpg.language.models.inputs import forward_arguments, language_inputs, of_equal_length
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.sequence_classifier import sequence_scores
from tests.support.causal_families import tiny_of_family
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, tiny_model

PROMPTS = [[5, 9, 3], [7], [8, 2, 30, 31, 4], [11, 12, 13]]
RESPONSES = [[4, 6], [9, 10, 11, 12], [3], [20, 21, 22]]
MIND = ["rwkv", "recurrent_gemma", "trocr"]
"""Recurrent, recurrent in a part, and with positions that are counted from the first column."""


def policy_of_family(kind: str) -> CausalLMPolicy:
    model = tiny_of_family(kind)
    options = {"eos_token_ids": (EOS,), "pad_token_id": PAD, "context_length": CONTEXT}
    return CausalLMPolicy(model, torch.nn.Linear(32, 1), temperature=1.2, **options)


@pytest.mark.parametrize("kind", [*MIND, "llama", "opt", "bloom", "mamba", "deepseek_v3"])
def test_it_is_found_whether_a_trunk_bears_padding(kind):
    assert bears_padding(trunk_of(tiny_of_family(kind))) == (kind not in MIND)


@catches("padding before the texts of a recurrent model")
@pytest.mark.parametrize("kind", MIND)
def test_a_batch_has_the_log_probs_gradients_and_values_of_its_rows_alone(kind):
    policy, inputs = policy_of_family(kind), language_inputs(PROMPTS, RESPONSES, PAD)
    together = policy.evaluate(inputs)
    torch.testing.assert_close(together.logprobs_BT, policy.plain_logprobs(inputs))
    (together.logprobs_BT.sum() + together.values_BT.sum()).backward()
    batch = {name: x.grad for name, x in policy.named_parameters() if x.grad is not None}
    policy.zero_grad()
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
        alone = policy.evaluate(language_inputs([prompt], [response], PAD))
        torch.testing.assert_close(together.values_BT[b, : len(response)], alone.values_BT[0])
        (alone.logprobs_BT.sum() + alone.values_BT.sum()).backward()
    rows = {name: x.grad for name, x in policy.named_parameters() if x.grad is not None}
    torch.testing.assert_close(batch, rows, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", MIND)
def test_padding_would_change_these_models(kind, monkeypatch):
    policy, inputs = policy_of_family(kind), language_inputs(PROMPTS, RESPONSES, PAD)
    monkeypatch.setattr(response_states, "bears_padding", lambda trunk: True)
    off = (policy.evaluate(inputs).logprobs_BT - policy.plain_logprobs(inputs)).abs()
    assert off[2].max() < 1e-5  # the longest prompt has none
    assert off.max() > 1e-3


def test_texts_that_begin_in_the_first_column_keep_their_order_and_their_positions():
    found = forward_arguments(language_inputs([[5, 6], [7]], [[8, 9], [2, 3, 4]], PAD), left=False)
    assert found["input_ids"][0, :3].tolist() == [5, 6, 8]
    assert found["input_ids"][1, :3].tolist() == [7, 2, 3]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert found["position_ids"][:, :3].tolist() == [[0, 1, 2]] * 2


def test_rows_of_equal_length_are_together():
    assert of_equal_length(["aa", "b", "cc", "ddd"]) == [[1], [0, 2], [3]]


@torch.no_grad()
def test_scores_of_sequences_are_the_same_with_padding_on_either_side(monkeypatch):
    model, rows = tiny_model("reward"), [p + r for p, r in zip(PROMPTS, RESPONSES)]
    before = sequence_scores(model, rows)
    monkeypatch.setattr(sequence_classifier, "bears_padding", lambda trunk: False)
    torch.testing.assert_close(sequence_scores(model, rows), before)
