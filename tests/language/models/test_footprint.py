"""What a run will need of the memory is what its parts take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmpg.language.models.critic import critic_like
from lmpg.language.models.footprint import needs
from lmpg.language.models.footprint.needs import (
    Work,
    engine,
    graph,
    largest_rows,
    layer_bytes,
    peak,
    phases,
    staying,
    total,
)
from lmpg.language.models.footprint.said import fitting_tokens, lines, remedies
from lmpg.language.models.footprint.shape import shape_of
from lmpg.language.models.forward.kept_weights import keep_frozen
from lmpg.language.models.lora import learning_beside, with_adapter
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.settings import LoraSettings
from lmpg.language.sampling.engines.held_weights import _leaves
from lmpg.language.sampling.engines.policy_weights import policy_weights
from tests.support.planted import catches
from tests.support.tiny import tiny_model

ROWS, DEEP = 16, {"num_hidden_layers": 6, "max_position_embeddings": 512}
FP32, BF16 = torch.float32, torch.bfloat16


def policy_of(kind, bf16=False, rank=0, kept=FP32, whole=()):
    inner = {"n_inner": 160} if kind == "gpt2" else {"intermediate_size": 160}
    model = tiny_model(kind, hidden_size=64, **DEEP, **inner)
    if rank:
        lora = LoraSettings(rank=rank, modules_to_save=whole)
        model = keep_frozen(with_adapter(model, lora), kept)
    rest = {"temperature": 1.0, "eos_token_ids": (1,), "pad_token_id": 0, "context_length": 512}
    return CausalLMPolicy(model, None, bf16=bf16, frozen_dtype=kept, **rest)


def work_of(policy, length, rank=0, **rest):
    return Work(
        shape_of(policy.causal_lm),
        rows=ROWS,
        prompt=length // 8,
        response=length - length // 8,
        rank=rank,
        besides=learning_beside(policy.model),
        kept=policy.frozen_dtype.itemsize,
        product=2 if policy.bf16 else 4,
        **rest,
    )


def inputs_of(work):
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}_{what}": torch.full((ROWS,), n)
        if what == "lengths"
        else torch.randint(3, 60, (ROWS, n), generator=generator)
        for name, n in (("prompt", work.prompt), ("response", work.response))
        for what in ("ids", "lengths")
    }


def kept_for_backward(policy, inputs):
    """Bytes that a forward keeps beside the weights, each once."""
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    found = {}

    def kept(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    policy.states(inputs)  # looks once whether its forward is the model's
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        states = policy.states(inputs)
    assert states.hidden_ND.requires_grad
    return sum(found.values())


@catches("what an MLP keeps of its gate left out of the activations")
@catches("numbers of the residual stream counted in the precision of products")
@pytest.mark.parametrize(
    ("kind", "length", "bf16", "rank", "kept"),
    [
        ("llama", 40, False, 0, FP32),
        ("llama", 40, True, 0, FP32),
        ("llama", 300, False, 0, FP32),
        ("llama", 300, True, 0, FP32),
        ("llama", 40, False, 4, BF16),
        ("llama", 40, True, 4, BF16),
        ("llama", 40, True, 4, FP32),
        ("qwen3", 40, False, 0, FP32),
        ("qwen3", 40, True, 0, FP32),
        ("gpt2", 40, False, 0, FP32),
    ],
)
def test_activations_are_those_that_a_forward_keeps(kind, length, bf16, rank, kept):
    policy = policy_of(kind, bf16, rank, kept)
    work = work_of(policy, length, rank)
    expected = kept_for_backward(policy, inputs_of(work))
    assert graph(work, work.model) == pytest.approx(expected, rel=0.07)


def test_of_layers_that_are_recomputed_the_stream_before_each_is_kept():
    policy = policy_of("llama")
    policy.recompute_layers()
    work = work_of(policy, 40, recompute=True)
    again = ROWS * 40 * layer_bytes(work, work.model)
    expected = kept_for_backward(policy, inputs_of(work))
    assert graph(work, work.model) - again == pytest.approx(expected, rel=0.15)
    assert graph(work, work.model) < 0.5 * graph(replace(work, recompute=False), work.model)


@catches("a frozen weight counted in the precision of those that learn")
@catches("modules that learn as a whole beside adapters left out, or counted as frozen twice")
@pytest.mark.parametrize(
    ("rank", "kept", "whole"),
    [(0, FP32, ()), (4, FP32, ()), (4, BF16, ()), (4, BF16, ("norm", "lm_head"))],
)
def test_weights_gradients_and_states_are_counted_to_the_byte(rank, kept, whole):
    policy = policy_of("llama", False, rank, kept, whole)
    work = work_of(policy, 40, rank)
    assert work.model.weights == shape_of(policy_of("llama").model).weights
    learning = [p for p in policy.parameters() if p.requires_grad]
    for p in learning:
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW(learning)
    optimizer.step()
    states = [x for state in optimizer.state.values() for x in state.values() if x.dim()]
    found = staying(work)
    assert found["weights"] == sum(p.nbytes for p in policy.parameters())
    assert found["optimizer"] == sum(x.nbytes for x in states)
    assert phases(work)["learning"]["gradients"] == sum(p.grad.nbytes for p in learning)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_engine_holds_the_linear_layers_and_the_head_a_second_time(monkeypatch, bf16, tied):
    # packed weights do not tell their size
    monkeypatch.setattr(
        "lmpg.language.sampling.engines.linear._can_be_packed", lambda weight: False
    )
    policy = policy_of("llama", bf16)
    if tied:
        policy.model.lm_head.weight = policy.model.get_input_embeddings().weight
    work = work_of(policy, 40, sampled=ROWS)
    own = {p.data_ptr() for p in policy.parameters()}
    held = _leaves(policy_weights(policy, 40))
    copies = [x for x in held if isinstance(x, torch.Tensor) and x.data_ptr() not in own]
    if not bf16:  # what needs no other layout is shared here, but not packed
        copies += [p for n, p in policy.named_parameters() if "o_proj" in n or "mlp" in n]
        copies += [policy.model.lm_head.weight]
    assert engine(work)["engine"] == pytest.approx(sum(x.nbytes for x in copies), rel=0.05)


def test_a_critic_of_its_own_adds_its_trunk_and_its_graph():
    policy = policy_of("llama")
    work = work_of(policy, 40)
    critic = critic_like(policy.model)
    shape = shape_of(critic.trunk)
    assert shape.trunk == sum(p.numel() for p in critic.trunk.parameters())
    alone, both = (phases(replace(work, critic_shape=x))["learning"] for x in (None, shape))
    assert both["activations"] == 2 * alone["activations"]
    assert both["gradients"] == alone["gradients"] + 4 * shape.trunk
    assert both["optimizer of the critic"] == 8 * shape.trunk


@catches("activations and gradients of a single micro-batch counted as if they met")
def test_a_single_backward_pass_frees_activations_as_gradients_come():
    work = replace(work_of(policy_of("llama"), 40), several=False)
    alone = phases(work)["learning"]
    together = phases(replace(work, several=True))["learning"]
    found = alone["activations"], alone["gradients"]
    expected = together["activations"], together["gradients"]
    assert sorted(found) == [0, max(expected)]


@catches("an adapter's merged model counted as it is saved, though it is merged as it is kept")
def test_a_merged_copy_is_counted_in_the_wider_of_what_is_kept_and_what_is_saved():
    work = Work(shape_of(tiny_model()), rows=1, prompt=1, response=1, rank=2)
    for kept, saved, expected in [(4, 2, 4), (2, 4, 4), (2, 2, 2), (4, 4, 4)]:
        found = phases(replace(work, kept=kept, saved=saved))["saving"]["copy to be saved"]
        assert found == expected * work.model.weights
    assert phases(replace(work, rank=0))["saving"]["copy to be saved"] == 0


@catches("the largest micro-batch that does not fit instead of the one before")
def test_the_micro_batch_is_the_largest_that_fits():
    work = replace(work_of(policy_of("llama"), 40), rows=500)
    budget = total(replace(work, rows=37))
    assert largest_rows(work, budget) == 37
    assert largest_rows(work, budget - 1) == 36
    assert (largest_rows(work, 1e12), largest_rows(work, 0)) == (500, 1)
    tokens, line = fitting_tokens(work, 0.5, 2 * budget)
    assert tokens == 37 * 40
    assert "1480 tokens at most, as many as fit into 50% of" in line
    tokens, line = fitting_tokens(work, 0.5, 1e12)
    assert tokens == 0
    assert "500 rows of 40 tokens fit into 50% of" in line


def test_the_first_lines_name_parts_and_what_there_is():
    work = replace(work_of(policy_of("llama"), 40), sampled=64)
    (line,) = lines(work, (8e9, 3e9))
    assert line.startswith("memory: about 0.68 GB ")
    assert total(work) == pytest.approx(0.675e9, abs=0.005e9)
    assert f"at most, while {peak(work)[0]} (libraries 0.65" in line
    assert line.endswith("; there are 8.0 GB, 3.0 GB of them free")


@catches("a warning that names the first setting instead of the one that helps most")
def test_where_it_does_not_fit_the_setting_that_helps_most_is_named():
    big = replace(shape_of(policy_of("llama").model), weights=7 * 10**9, trunk=7 * 10**9)
    work = Work(big, rows=1, prompt=100, response=100)
    assert (
        "warning: the run will need more memory than is there (20.0 GB): --model.lora"
        in (lines(work, (20e9, 10e9))[1])
    )
    small = replace(work_of(policy_of("llama"), 300), rows=10_000)
    free = total(small) - 1
    (_, warning) = lines(small, (1e12, free))
    assert "than is free" in warning
    assert "--update.microbatch-size 1 helps most" in warning
    least = min(remedies(small).values())
    assert least < 0.2 * total(small)
    assert len(lines(small, (1e12, total(small)))) == 1


@catches("a base that is read in bfloat16 counted as if in float32")
def test_a_base_in_bf16_under_adapters_is_loaded_as_it_is_and_others_in_fp32():
    work = Work(shape_of(tiny_model()), rows=1, prompt=1, response=1, rank=2, kept=2, saved=2)
    weights = work.model.weights

    def loading(**changes):
        return phases(replace(work, **changes))["loading"]["weights"] / weights

    assert loading() == 2
    assert [loading(**x) for x in ({"rank": 0}, {"kept": 4}, {"saved": 4})] == [4, 4, 4]
    assert loading(critic_shape=work.model) > 4
    assert loading(besides=1) == 4


@catches("micro-batches of one row where loading alone takes more than the budget")
def test_a_micro_batch_is_as_large_however_much_loading_takes(monkeypatch):
    work = replace(work_of(policy_of("llama"), 40), rows=500)
    budget = total(replace(work, rows=37))
    monkeypatch.setattr(needs, "_loading", lambda work: {"files": 2 * budget})
    assert total(work) >= 2 * budget
    assert largest_rows(work, budget) == 37


@catches("the room that weights leave which are read in fp32 and packed into 4 bits left out")
def test_while_a_base_in_4_bits_is_loaded_its_layers_have_had_room_in_fp32_too():
    model = shape_of(tiny_model())
    work = Work(model, rows=1, prompt=1, response=1, rank=2, kept=2, saved=2, packed=True)
    found = phases(work)["loading"]
    packed = 0.5625 * model.linear + 4 * (model.weights - model.linear)
    assert found["weights"] + found["widened weights"] == packed + 4 * model.linear
    assert "widened weights" not in phases(replace(work, packed=False))["loading"]
