"""CausalLMPolicy: log-probs, entropy and values of response tokens, saving and loading."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmpg.language.models.critic import load_value_head, new_value_head, save_value_head
from lmpg.language.models.inputs import language_inputs, mask_and_positions
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, tiny_model, tiny_tokenizer

KINDS = ["llama", "qwen2", "gpt2"]
PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 12, 30, 31, 2, 17, 18], [11, PAD, EOS]]
RESPONSES = [[10, 11, EOS], [PAD, EOS, PAD, 14, 15, 16], [13], [20, 21, 22, 23]]
INPUTS = language_inputs(PROMPTS, RESPONSES, PAD)


def policy(kind="llama", temperature=0.7, critic=True, bf16=False, **changes):
    model = tiny_model(kind, **changes)
    head = torch.nn.Linear(32, 1) if critic else None
    return CausalLMPolicy(
        model,
        head,
        temperature=temperature,
        eos_token_ids=(EOS,),
        pad_token_id=PAD,
        context_length=CONTEXT,
        bf16=bf16,
    )


def one_row(b):
    return language_inputs([PROMPTS[b]], [RESPONSES[b]], PAD)


def wider(inputs, left, right):
    """The same rows with more padding than they need."""
    pad = torch.nn.functional.pad
    return {
        **inputs,
        "prompt_ids": pad(inputs["prompt_ids"], (left, 0), value=17),
        "response_ids": pad(inputs["response_ids"], (0, right), value=18),
    }


def test_inputs_are_padded_towards_each_other():
    assert INPUTS["prompt_ids"].tolist()[1] == [PAD] * 8 + [9]
    assert INPUTS["response_ids"].tolist()[2] == [13] + [PAD] * 5
    assert INPUTS["prompt_lengths"].tolist() == [3, 1, 9, 3]
    assert INPUTS["response_lengths"].tolist() == [3, 6, 1, 4]
    assert all(x.dtype == torch.int64 for x in INPUTS.values())


def test_positions_count_from_the_first_real_token_and_never_leave_the_row():
    mask, positions = mask_and_positions(torch.tensor([2, 0]), torch.tensor([4, 5]), 5)
    assert mask.tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert positions.tolist() == [[0, 0, 0, 1, 1], [0, 1, 2, 3, 4]]


@catches(
    "positions that count padding",
    "padding of prompts not masked",
    "log-probs from the hidden state after the token instead of before it",
)
@pytest.mark.parametrize("kind", KINDS)
def test_padded_logprobs_equal_the_models_own_logits_row_by_row_unpadded(kind):
    it = policy(kind)
    evaluation = it.evaluate(INPUTS)
    torch.testing.assert_close(
        evaluation.logprobs_BT, it.plain_logprobs(INPUTS), rtol=1e-5, atol=1e-5
    )
    for b in range(4):
        logits = it.model(torch.tensor([PROMPTS[b] + RESPONSES[b]])).logits[0] / 0.7
        logp = logits[len(PROMPTS[b]) - 1 : -1].log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        n = len(RESPONSES[b])
        torch.testing.assert_close(evaluation.entropy_BT[b, :n], entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_padding_do_not_change_the_results(kind):
    it = policy(kind)
    together = it.evaluate(INPUTS)
    padded = it.evaluate(wider(INPUTS, 5, 7))
    for name in ("logprobs_BT", "entropy_BT", "values_BT"):
        assert torch.equal(getattr(padded, name)[:, :6], getattr(together, name))
        assert (getattr(padded, name)[:, 6:] == 0).all()
    for b in range(4):
        alone = it.evaluate(one_row(b))
        n = len(RESPONSES[b])
        for name in ("logprobs_BT", "entropy_BT", "values_BT"):
            found, expected = getattr(together, name)[b], getattr(alone, name)[0]
            torch.testing.assert_close(found[:n], expected, rtol=1e-5, atol=1e-5)
            assert (found[n:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_one_batch_are_the_sum_of_its_rows_gradients(kind):
    together, apart = policy(kind), policy(kind)
    apart.load_state_dict(together.state_dict())

    def loss(evaluation):
        terms = evaluation.logprobs_BT + 0.3 * evaluation.entropy_BT + evaluation.values_BT**2
        return terms.sum()

    loss(together.evaluate(wider(INPUTS, 3, 2))).backward()
    for b in range(4):
        loss(apart.evaluate(one_row(b))).backward()
    for (name, one), other in zip(together.named_parameters(), apart.parameters()):
        scale = float(one.grad.abs().max())
        torch.testing.assert_close(
            one.grad, other.grad, rtol=1e-5, atol=1e-5 * max(scale, 1), msg=lambda m, n=name: n + m
        )


@catches("values read after the token")
def test_values_are_read_before_each_token():
    it = policy()
    before = it.evaluate(INPUTS).values_BT
    changed = {**INPUTS, "response_ids": INPUTS["response_ids"].clone()}
    changed["response_ids"][1, 2] = 40
    after = it.evaluate(changed).values_BT
    assert torch.equal(after[1, :3], before[1, :3])
    assert (after[1, 3:6] != before[1, 3:6]).all()
    hidden = it.trunk(torch.tensor([PROMPTS[1]])).last_hidden_state[0, -1]
    torch.testing.assert_close(before[1, 0], it.value_head(hidden)[0])


@catches("dropout on in training")
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_off_even_in_training(kind):
    dropout = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    it = policy(kind, **(dropout if kind == "gpt2" else {"attention_dropout": 0.5})).train()
    assert not any(module.training for module in it.modules())
    first = it.evaluate(INPUTS).logprobs_BT
    with torch.no_grad():
        assert torch.equal(first, it.evaluate(INPUTS).logprobs_BT)


def test_responses_without_steps_evaluate_to_nothing():
    it = policy()
    evaluation = it.evaluate(language_inputs([[5, 6], [7]], [[], []], PAD))
    assert evaluation.logprobs_BT.shape == (2, 0)


def test_repeated_backward_passes_are_bit_identical():
    gradients = []
    for _ in range(2):
        it = policy("gpt2")
        torch.manual_seed(0)
        torch.nn.init.normal_(it.value_head.weight)
        evaluation = it.evaluate(INPUTS)
        (evaluation.logprobs_BT + evaluation.values_BT).sum().backward()
        gradients.append([p.grad for p in it.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_bfloat16_computes_in_autocast_over_float32_weights():
    exact, rough = policy(), policy(bf16=True)
    rough.load_state_dict(exact.state_dict())
    evaluation = rough.evaluate(INPUTS)
    difference = (evaluation.logprobs_BT - exact.evaluate(INPUTS).logprobs_BT).abs().max()
    assert 1e-6 < difference < 0.1
    assert all(p.dtype == torch.float32 for p in rough.parameters())
    for x in (evaluation.logprobs_BT, evaluation.entropy_BT, evaluation.values_BT):
        assert x.dtype == torch.float32
    torch.testing.assert_close(
        rough.plain_logprobs(INPUTS), evaluation.logprobs_BT, rtol=0.05, atol=0.05
    )


@catches("reference shares the policy's weights", "the reference is the policy itself")
def test_the_reference_stays_as_the_policy_was():
    it = policy()
    before = it.evaluate(INPUTS).logprobs_BT.detach()
    reference = it.reference()
    assert torch.equal(reference.logprobs(INPUTS), before)
    with torch.no_grad():
        for parameter in it.parameters():
            parameter.add_(0.1)
    assert torch.equal(reference.logprobs(INPUTS), before)
    assert not torch.equal(it.evaluate(INPUTS).logprobs_BT, before)
    assert all(p.requires_grad for p in it.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainable_state_has_each_tensor_once_and_round_trips(kind):
    it, other = policy(kind), policy(kind, seed=1)
    state = {name: tensor.clone() for name, tensor in it.trainable_state().items()}
    assert len(state) == len(list(it.parameters()))
    assert len({t.data_ptr() for t in it.trainable_state().values()}) == len(state)
    other.load_trainable_state(state)
    assert torch.equal(other.evaluate(INPUTS).logprobs_BT, it.evaluate(INPUTS).logprobs_BT)
    assert torch.equal(other.evaluate(INPUTS).values_BT, it.evaluate(INPUTS).values_BT)


@catches("a saved state loaded although names are missing")
def test_a_state_that_is_not_this_policys_is_refused_by_name():
    it = policy()
    state = it.trainable_state()
    with pytest.raises(UserError, match=r"value_head.bias is missing"):
        it.load_trainable_state({k: v for k, v in state.items() if k != "value_head.bias"})
    with pytest.raises(UserError, match=r"extra is unexpected"):
        it.load_trainable_state({**state, "extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"value_head.bias has shape \(2,\), expected \(1,\)"):
        it.load_trainable_state({**state, "value_head.bias": torch.zeros(2)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_is_a_plain_transformers_folder_that_writes_the_same_text(kind, tmp_path):
    it = policy(kind)
    tokenizer = tiny_tokenizer()
    it.save_pretrained(tmp_path, tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), it.model.parameters()))
    ids = AutoTokenizer.from_pretrained(tmp_path)("hello", return_tensors="pt")
    texts = [
        tokenizer.decode(model.generate(**ids, do_sample=False, max_new_tokens=20)[0])
        for model in (plain, it.model)
    ]
    assert texts[0] == texts[1]
    head = load_value_head(tmp_path)
    assert torch.equal(head.weight, it.value_head.weight)
    assert torch.equal(head.bias, it.value_head.bias)


def test_a_new_value_head_says_zero_and_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = copy.deepcopy(torch.get_rng_state())
    head = new_value_head(32)
    assert torch.equal(torch.get_rng_state(), expected)
    assert (head(torch.randn(5, 32)) == 0).all()
    assert head.weight.requires_grad


def test_a_value_head_file_with_anything_else_in_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no"):
        load_value_head(tmp_path)
    save_value_head(torch.nn.Linear(4, 2), tmp_path)
    with pytest.raises(UserError, match=r"expected weight \(1, hidden size\)"):
        load_value_head(tmp_path)
