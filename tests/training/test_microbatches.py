"""How rows are cut into forwards."""

import torch

from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rollouts.generation import Generator
from lmpg.language.sampling.samples import Samples
from lmpg.training.update import microbatches
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, tiny_model


def cut(prompts, responses, rows, tokens):
    inputs = {"prompt_lengths": torch.tensor(prompts), "response_lengths": torch.tensor(responses)}
    return [part.tolist() for part in microbatches(inputs, rows, tokens)]


def test_rows_of_like_length_go_together_longest_first():
    assert cut([1, 1, 1, 1], [5, 9, 6, 8], 2, 0) == [[1, 3], [2, 0]]


@catches("padding not counted among a micro-batch's tokens")
def test_a_forward_holds_its_tokens_at_most_padding_counted_and_one_row_at_least():
    assert cut([1, 1, 1, 1], [9, 5, 4, 1], 4, 12) == [[0], [1, 2], [3]]
    assert cut([8, 1], [1, 8], 4, 31) == [[0], [1]]  # together 2 rows of 8 + 8
    assert cut([8, 1], [1, 8], 4, 32) == [[0, 1]]
    assert cut([50], [50], 4, 7) == [[0]]


def test_steps_of_an_environment_are_cut_in_their_order():
    parts = microbatches({"observations": torch.zeros(5, 1, 3)}, 2, 7)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert microbatches({"observations": torch.zeros(0, 1, 3)}, 2) == []


def tiny_policy():
    return CausalLMPolicy(
        tiny_model(),
        torch.nn.Linear(32, 1),
        temperature=0.7,
        eos_token_ids=(EOS,),
        pad_token_id=PAD,
        context_length=CONTEXT,
    )


@catches("as many rows at once where their layers would be computed again, too")
def test_a_pass_without_gradients_takes_several_micro_batches_at_once():
    policy, seen = tiny_policy(), []
    inputs = language_inputs([[5, 6]] * 11, [[8]] * 11, PAD)

    def evaluate(part):
        seen.append(len(part["prompt_ids"]))
        return part["response_ids"].float()

    generator = Generator(policy, None, None, 0, None, 1)
    generator.evaluated(inputs, evaluate)
    assert seen == [4, 4, 3]
    seen.clear()
    policy.recompute_layers()
    generator.evaluated(inputs, evaluate)
    assert seen == [1] * 11


@catches("responses evaluated again stay in the order of their lengths")
def test_completions_evaluated_again_come_back_in_their_order(monkeypatch):
    monkeypatch.setattr("lmpg.language.rollouts.generation.WITHOUT_GRADIENTS", 1)
    policy = tiny_policy()
    inputs = language_inputs([[5, 6], [7]] * 3, [[8] * n for n in (2, 5, 1, 4, 6, 3)], PAD)
    whole = policy.evaluate(inputs)
    mask_BT = whole.logprobs_BT != 0
    samples = Samples(inputs, mask_BT, *([whole.logprobs_BT] * 3), mask_BT[:, 0])
    for size, tokens in [(2, 0), (6, 11)]:
        generator = Generator(policy, None, None, 0, None, size, tokens)
        found = generator.evaluated(samples.inputs, policy.reference().logprobs)
        torch.testing.assert_close(found, whole.logprobs_BT, rtol=1e-5, atol=1e-5)
        policy.bf16 = True
        again = generator.old_evaluation(samples)
        policy.bf16 = False
        for name in ("logprobs_BT", "entropy_BT", "values_BT"):
            near = {"rtol": 0.05, "atol": 0.05}
            torch.testing.assert_close(getattr(again, name), getattr(whole, name), **near)
