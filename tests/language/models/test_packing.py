"""Packed rows: the loss and gradients of separate rows, or a refusal."""

from __future__ import annotations

import pytest
import torch
import transformers

from lmpg.language.data.packing import rows_of
from lmpg.language.models.packing_check import block_mask, packed_logprobs, refuse_unpackable
from lmpg.settings.section import UserError
from tests.support.objectives import random_ids, random_texts, sft_objective, tiny_policy
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, VOCABULARY, tiny_model

KINDS = {
    "llama": lambda: tiny_model(),
    "gpt2": lambda: tiny_model("gpt2"),
    "qwen2": lambda: tiny_model("qwen2"),
    "eager": lambda: tiny_model(attn_implementation="eager"),
}


def gradients(objective, examples) -> dict[str, torch.Tensor]:
    objective.module.zero_grad()
    objective.loss_sums(examples)["loss"].backward()
    named = objective.module.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@catches("packed texts attend to each other", "positions of a packed row run on")
@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_rows_have_the_loss_and_gradients_of_separate_ones(kind):
    texts = random_texts(9)
    policy = tiny_policy(KINDS[kind]())
    plain, rows = (sft_objective(texts, policy=policy, packing=x) for x in (False, True))
    assert max(len(row) for row in rows.train) >= 3
    alone, together = plain.loss_sums(plain.train), rows.loss_sums(rows.train)
    for name, x in alone.items():
        assert together[name].item() == pytest.approx(x.item(), rel=1e-5)
    expected, found = gradients(plain, plain.train), gradients(rows, rows.train)
    for name, x in expected.items():
        assert float((found[name] - x).abs().max() / x.abs().max()) <= 1e-5


def test_a_texts_log_probs_do_not_depend_on_its_neighbours():
    policy = tiny_policy()
    mine, *others = random_ids(4, 7)

    def piece(ids):
        return ids, [False] + [True] * (len(ids) - 1)

    alone, _ = packed_logprobs(policy, [[piece(mine)]])
    for row in ([others[0], mine], [mine, others[1], others[2]], [others[0], others[1], mine]):
        found, _ = packed_logprobs(policy, [list(map(piece, row))])
        before = sum(len(ids) - 1 for ids in row[: row.index(mine)])
        torch.testing.assert_close(found[before : before + len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_packed_rows_in_bf16_are_near_those_of_fp32():
    texts = random_texts(9)
    losses = []
    for bf16 in (False, True):
        rows = sft_objective(texts, policy=tiny_policy(bf16=bf16), packing=True)
        losses.append(rows.loss_sums(rows.train)["loss"].item())
    full, half = losses
    assert half == pytest.approx(full, rel=0.01)
    assert half != full


def test_a_token_looks_at_itself_and_the_earlier_ones_of_its_text():
    seen = (block_mask(torch.tensor([[1, 1, 2, 2, 0]]))[0, 0] == 0).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_rows_hold_every_text_once_within_the_capacity_and_waste_little():
    lengths = [len(ids) for ids in random_ids(200, 0)]
    rows = rows_of(lengths, 32)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert all(sum(lengths[i] for i in row) <= 32 for row in rows)
    assert len(rows) <= 1.1 * sum(lengths) / 32 + 1
    assert rows_of([4, 3, 2], 4) == [[0], [1], [2]]


def test_all_texts_are_learned_in_every_epoch():
    texts = random_texts(12)
    objective = sft_objective(texts, packing=True)
    for number in (0, 1):
        ids = [text.ids for row in objective.epoch(number) for text in row]
        assert sorted(ids) == sorted(text.ids for text in texts)
    assert objective.epoch(0) != objective.epoch(1)
    assert sum(map(objective.weight, objective.train)) == sum(sum(x.loss_mask) for x in texts)


def model_of(name: str, **changes):
    shared = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shared, **changes)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": CONTEXT}


@catches("texts packed for a model with sliding windows")
@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("Bloom", {"n_head": 4}, "it takes no position ids"),
        ("Mamba", {"state_size": 4}, "linear_attention"),
        (
            "Mistral",
            {**HEADS, "num_key_value_heads": 2, "sliding_window": 16},
            "sliding window of 16",
        ),
        (
            "Gemma2",
            {**HEADS, "num_key_value_heads": 2, "sliding_window": 16},
            "sliding window of 16",
        ),
        ("Falcon", {"num_attention_heads": 4, "alibi": True}, "differ by|fails on such rows"),
    ],
)
def test_models_whose_texts_would_see_each_other_are_refused(name, changes, reason):
    policy = tiny_policy(model_of(name, **changes))
    with pytest.raises(UserError, match=rf"data.packing does not work with {name}.*({reason})"):
        refuse_unpackable(policy)


def test_a_window_as_long_as_the_context_is_none():
    changes = {**HEADS, "num_key_value_heads": 2, "sliding_window": CONTEXT}
    refuse_unpackable(tiny_policy(model_of("Mistral", **changes)))
