"""Gradient checkpointing: the same gradients from a fraction of what a forward keeps."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import BertConfig, BertForSequenceClassification

from lmpg.language.models.critic import critic_like
from lmpg.language.models.forward import decoder, response_states
from lmpg.language.models.forward.recompute import recompute_layers
from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.lora import with_adapter
from lmpg.language.models.packing_check import packed_logprobs
from lmpg.language.models.sequence_classifier import sequence_scores
from lmpg.language.models.settings import LoraSettings
from lmpg.settings.section import UserError
from tests.language.models.test_kept_weights import LOW, keep_frozen
from tests.support.objectives import tiny_policy
from tests.support.planted import catches
from tests.support.tiny import EOS, PAD, deep_policy, tiny_model

INPUTS = language_inputs([[5, 6, 7], [9], [8, 4]], [[10, 11, 12], [13, 14], [15]], PAD)


def shared_critic(**options):
    policy = tiny_policy(**options)
    policy.value_head = torch.nn.Linear(32, 1)
    return policy


def separate_critic():
    model = tiny_model()
    critic = critic_like(model)
    critic.head.weight.data += 0.1
    return tiny_policy(model, critic=critic)


def adapted(low=False, kind="llama"):
    torch.manual_seed(0)
    model = with_adapter(tiny_model(kind), LoraSettings(rank=2))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data += 0.1
    return tiny_policy(keep_frozen(model, LOW) if low else model)


POLICIES = {
    "plain": tiny_policy,
    "gpt2": lambda: tiny_policy(tiny_model("gpt2")),
    "shared critic": shared_critic,
    "separate critic": separate_critic,
    "bf16": lambda: shared_critic(bf16=True),
    "lora": adapted,
    "lora over bf16": lambda: adapted(low=True),
}


def learned(policy, loss) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def loss_of(policy):
    new = policy.evaluate(INPUTS)
    values = 0 if new.values_BT is None else new.values_BT.square().sum()
    return new.logprobs_BT.sum() + new.entropy_BT.sum() + values


@catches(
    "a layer computed again in another precision", "a layer computed again without kept weights"
)
@pytest.mark.parametrize("own_forward", [False, True])
@pytest.mark.parametrize("kind", list(POLICIES))
def test_layers_that_are_computed_again_give_the_same_gradients(kind, own_forward, monkeypatch):
    if own_forward:
        monkeypatch.setattr(response_states, "unsupported", lambda *_: "a test")
    torch.manual_seed(0)
    plain = POLICIES[kind]()
    torch.manual_seed(0)
    again = POLICIES[kind]()
    again.recompute_layers()
    plain.head.kept = 0
    expected, found = (learned(x, loss_of(x)) for x in (plain, again))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


def test_packed_rows_and_scores_are_computed_again_alike():
    piece = ([5, 6, 7, 8], [False, True, True, True])
    plain, again = tiny_policy(), tiny_policy()
    again.recompute_layers()
    plain.head.kept = 0
    expected, found = (
        learned(x, packed_logprobs(x, [[piece, piece], [piece]])[0].sum()) for x in (plain, again)
    )
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    plain, again = tiny_model("reward"), tiny_model("reward")
    recompute_layers(again.base_model)
    expected, found = (
        learned(x, sequence_scores(x, [[5, 6, 7], [8, EOS]]).sum()) for x in (plain, again)
    )
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def kept_bytes(policy, inputs) -> int:
    """What the graph of a forward keeps beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss = policy.evaluate(inputs).logprobs_BT.sum()
    found = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    return found


@catches("only some layers computed again")
@pytest.mark.parametrize("own_forward", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_forward_keeps_less_than_a_quarter(bf16, own_forward, monkeypatch):
    if own_forward:
        monkeypatch.setattr(response_states, "unsupported", lambda *_: "a test")
    inputs = language_inputs([[5] * 20] * 4, [[6] * 30] * 4, PAD)
    grown = []
    for recompute in (False, True):
        policy = deep_policy(vocab_size=100)
        policy.bf16 = bf16
        if recompute:
            policy.recompute_layers()
        short = kept_bytes(policy, language_inputs([[5]], [[6, 7]], PAD))
        grown.append(kept_bytes(policy, inputs) - short)
    assert grown[1] < 0.25 * grown[0]


def test_a_model_whose_layers_are_unknown_is_refused():
    class Strange(torch.nn.Module):
        pass

    with pytest.raises(UserError, match=r"model.gradient_checkpointing is True, but .* Strange"):
        recompute_layers(Strange())


def test_what_computes_a_score_itself_computes_it_again_alike():
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=1,
        pad_token_id=0,
    )
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
        if recompute:
            recompute_layers(model.base_model)
        found.append(learned(model, sequence_scores(model, [[5, 6, 7], [8, 1]]).sum()))
    assert all(torch.equal(found[1][name], x) for name, x in found[0].items())


@catches("copies of weights in bfloat16 kept for the backward pass")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_no_copies_of_weights_are_kept_and_gradients_are_those_of_autocast(kind, monkeypatch):
    found, kept = [], []
    for plain in (False, True):
        policy = tiny_policy(tiny_model(kind), bf16=True)
        if plain:
            monkeypatch.setattr(decoder, "product", lambda linear, x: linear(x))
        kept.append(kept_bytes(policy, INPUTS))
        policy.zero_grad()
        found.append(learned(policy, loss_of(policy)))
    assert all(torch.equal(found[0][name], x) for name, x in found[1].items())
    layers = [p for name, p in policy.named_parameters() if p.dim() == 2 and ".layers." in name]
    assert kept[1] - kept[0] == sum(2 * p.numel() for p in layers)


@catches("an adapter's argument kept in float32", "an adapter passed over")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bf16", [False, True])
def test_adapters_have_the_gradients_of_peft_and_share_their_argument(bf16, kind, monkeypatch):
    found, kept = [], []
    for plain in (False, True):
        policy = adapted(kind=kind)
        policy.bf16 = bf16
        if plain:
            monkeypatch.setattr(decoder, "product", lambda linear, x: linear(x))
        kept.append(kept_bytes(policy, INPUTS))
        policy.zero_grad()
        found.append(learned(policy, loss_of(policy)))
    assert found[0].keys() == found[1].keys()
    for name, x in found[1].items():
        assert torch.equal(found[0][name], x), name
    assert kept[0] < kept[1] if bf16 else kept[0] == kept[1]


@catches("widened weights kept for the backward pass")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_weight_kept_in_bf16_is_kept_for_the_backward_pass_as_it_is(bf16):
    kept = []
    for low in (True, False):
        policy = adapted(low)
        policy.bf16 = bf16
        kept.append(kept_bytes(policy, INPUTS))
    norms = [p for name, p in policy.named_parameters() if "norm" in name]
    assert kept[0] - kept[1] <= sum(4 * p.numel() for p in norms)
