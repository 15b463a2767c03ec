"""Sampling with memory that stays in place and a captured decode step: the same samples."""

import logging
import weakref
from dataclasses import fields, is_dataclass

import pytest
import torch

from lmpg.language.sampling.engines import cuda_rollouts, weights
from lmpg.language.sampling.engines.cuda import CudaDecoder
from lmpg.language.sampling.engines.cuda_batch import Choosing, CudaBatch
from lmpg.language.sampling.engines.graphs import bucketed
from lmpg.language.sampling.engines.held_weights import copy_weights_in_place
from lmpg.language.sampling.engines.linear import DenseLinear
from lmpg.language.sampling.engines.policy_weights import policy_weights
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import DistinctPrompts
from tests.language.sampling.test_cpu_engine import (
    FEW,
    PROMPTS,
    assert_exact,
    assert_same,
    policy,
    uniforms,
)
from tests.support.families import FAMILIES
from tests.support.planted import catches
from tests.support.recorded_graphs import RecordedGraphs
from tests.support.tiny import CONTEXT


def change(it, size=0.05):
    """What an update does: other numbers in the same parameters."""
    with torch.no_grad():
        for x in it.parameters():
            if x.requires_grad:
                x += size * torch.randn(x.shape)


@catches(
    "CUDA engine: a row's new token, or one after it, masked wrongly",
    "CUDA engine: padding of prompts not moved with its row",
    "CUDA engine: rows of the cache not moved with their responses",
    "CUDA engine: greedy or the number of columns not part of a graph's shape",
)
@pytest.mark.parametrize(
    ("family", "options"),
    [*((name, {}) for name in FEW), ("qwen2", {"top_k": 5}), ("gpt2", {"top_p": 0.8})],
)
def test_a_replayed_step_samples_what_the_present_path_samples(family, options, monkeypatch):
    monkeypatch.setattr(cuda_rollouts, "_COLUMNS", 16)
    it, graphs = policy(family), RecordedGraphs()
    plain, static = Sampler(it, 50, **options), Sampler(it, 50, capture=graphs, **options)
    static.check_every = 5
    for u in (uniforms(16, 50), None):
        expected, found = (s.sample(PROMPTS, 4, u) for s in (plain, static))
        assert_same(found, expected)
        assert_exact(it, found)
        for name in ("mask_BT", "finished_B"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        for name, x in expected.inputs.items():
            assert torch.equal(found.inputs[name], x), name
    assert static.backend == "by the CUDA engine, recorded graph"
    assert graphs.replays.total() > 50


def test_each_shape_is_captured_once_and_later_rollouts_only_replay():
    it, graphs = policy(), RecordedGraphs()
    sampler = Sampler(it, 50, capture=graphs)
    sampler.check_every = 5
    first, second = (sampler.sample(PROMPTS, 4, uniforms(16, 50)) for _ in range(2))
    captures, replays = graphs.captures, graphs.replays.total()
    third = sampler.sample(PROMPTS, 4, uniforms(16, 50))
    assert_same(first, second)
    assert_same(second, third)
    assert graphs.captures == captures > 3
    steps = int(third.inputs["response_lengths"].max()) - 1
    assert steps <= graphs.replays.total() - replays < steps + 5


@pytest.fixture
def places(monkeypatch):
    """The places of the batch at each step that is done plainly."""
    found, step = [], CudaBatch.step

    def counted(self, num_places, columns):
        found.append(num_places)
        step(self, num_places, columns)

    monkeypatch.setattr(CudaBatch, "step", counted)
    return found


@catches("a row that reached one EOS of several keeps its place")
@pytest.mark.parametrize("check_every", [1, 16])
def test_finished_rows_leave_and_less_than_an_interval_of_steps_is_in_vain(check_every, places):
    sampler = Sampler(policy(), 50, capture=RecordedGraphs(broken="a test"))
    sampler.check_every = check_every
    samples = sampler.sample(PROMPTS, 4, uniforms(16, 50))
    assert places == sorted(places, reverse=True)
    assert places[-1] < places[0] == 16
    needed = int(samples.inputs["response_lengths"].max()) - 1
    assert needed <= len(places) <= needed + check_every - 1
    going = (samples.mask_BT.sum(0)[1:]).tolist()  # rows that have a token at each later step
    if check_every == 1:
        assert places == [bucketed(n) for n in going]


@catches("new weights not copied to where a graph reads")
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_new_weights_come_to_where_a_captured_step_reads_them(family, bf16, lora):
    it, graphs = policy(family, lora), RecordedGraphs()
    it.bf16 = bf16
    sampler = Sampler(it, 12, capture=graphs)
    sampler.check_every = 12
    before = sampler.sample(PROMPTS, 4, uniforms(16, 12))
    captures = graphs.captures
    change(it)
    after = sampler.sample(PROMPTS, 4, uniforms(16, 12))
    assert not torch.equal(before.inputs["response_ids"], after.inputs["response_ids"])
    assert graphs.captures == captures > 0
    assert_same(
        after, Sampler(it, 12, capture=RecordedGraphs()).sample(PROMPTS, 4, uniforms(16, 12))
    )
    if not bf16:
        assert_exact(it, after)


@catches("the model's own weights overwritten by an adapter's sum")
def test_the_models_own_parameters_are_never_written():
    it = policy(lora=True)
    with it.model.disable_adapter():
        held = policy_weights(it, 32)  # reads most weights where they lie
    change(it)
    before = {name: x.clone() for name, x in it.state_dict().items()}
    assert not copy_weights_in_place(held, policy_weights(it, 32), it)
    assert all(torch.equal(x, before[name]) for name, x in it.state_dict().items())


@catches("graphs kept when memory has moved, or the temperature has changed")
def test_weights_that_moved_and_larger_rollouts_are_captured_anew():
    it, graphs = policy(), RecordedGraphs()
    sampler = Sampler(it, 12, capture=graphs)
    sampler.check_every = 12
    sampler.sample(PROMPTS, 2, uniforms(8, 12))
    captures = graphs.captures
    change(it)
    for x in it.parameters():
        x.data = x.data.clone()
    assert_exact(it, sampler.sample(PROMPTS, 2, uniforms(8, 12)))
    assert graphs.captures == 2 * captures
    for rows in (16, 8):
        assert_exact(it, sampler.sample(PROMPTS, rows // 4, uniforms(rows, 12)))
    assert graphs.captures == 4 * captures
    it.temperature = 0.5
    it.head = type(it.head)(it.causal_lm, 0.5)
    assert_exact(it, sampler.sample(PROMPTS, 4, uniforms(16, 12)))


def test_a_step_that_cannot_be_captured_is_done_plainly_and_said(caplog):
    it = policy()
    sampler = Sampler(it, 30, capture=RecordedGraphs(broken="it waits for the host\nat line 3"))
    with caplog.at_level(logging.WARNING):
        found = sampler.sample(PROMPTS, 4, uniforms(16, 30))
    assert_same(found, Sampler(it, 30).sample(PROMPTS, 4, uniforms(16, 30)))
    assert sampler.backend == "by the CUDA engine, no recorded graph, because it waits for the host"
    assert caplog.messages == ["sampling without a recorded graph: it waits for the host"]


@catches("NaN of an earlier rollout left under the mask")
def test_nothing_of_an_earlier_rollout_is_left():
    """NaN least of all: masked keys have weight 0, but 0 times NaN is NaN."""
    it = policy()
    sampler = Sampler(it, 20, capture=RecordedGraphs())
    expected = sampler.sample(PROMPTS[:2], 8, uniforms(16, 20))
    long = [[5] * 20, *PROMPTS[1:]]
    norm = it.model.model.norm.weight.data
    layer = it.model.model.layers[0].input_layernorm.weight.data
    good = norm.clone(), layer.clone()
    layer.fill_(float("nan"))
    sampler.sample(long, 4, None)
    norm.copy_(good[0])
    layer.copy_(good[1])
    assert_same(sampler.sample(PROMPTS[:2], 8, uniforms(16, 20)), expected)


@catches(
    "a finished row runs out of its columns of the cache",
    "a row that reached its limit keeps its place in the batch",
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_that_end_with_the_context_do_not_run_out_of_it(family, places):
    it = policy(family)
    it.eos_token_ids = (-1,)
    sampler = Sampler(it, 30, capture=RecordedGraphs(broken="a test"))
    sampler.check_every = 7
    prompts = [[5] * (CONTEXT - 4), [6] * 10, [7] * (CONTEXT - 1)]
    samples = sampler.sample(prompts, 1, uniforms(3, 30))
    assert samples.inputs["response_lengths"].tolist() == [4, 30, 1]
    assert places == 6 * [3] + 23 * [1]
    assert_exact(it, samples)


def elsewhere(x):
    """Weights on torch's meta device, where nothing can be asked and all must lie."""
    if isinstance(x, torch.Tensor | torch.nn.Module):
        return x.to("meta")
    if isinstance(x, DenseLinear):
        moved = object.__new__(DenseLinear)
        vars(moved).update({name: elsewhere(value) for name, value in vars(x).items()})
        return moved
    if isinstance(x, list):
        return [elsewhere(part) for part in x]
    if isinstance(x, dict):
        return {name: elsewhere(part) for name, part in x.items()}
    if is_dataclass(x):
        return type(x)(**{f.name: elsewhere(getattr(x, f.name)) for f in fields(x)})
    return x


@catches("a decode step waits for the host")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_step_asks_nothing_of_the_device_and_all_it_reads_lies_there(family, bf16):
    it = policy(family)
    it.bf16 = bf16
    parts = elsewhere(policy_weights(it, 64))
    trunk = CudaDecoder(parts.decoder, 64, rows=16)
    choosing = Choosing(5, 0.9, it.eos_token_ids)
    batch = CudaBatch(trunk, parts.logits, parts.values, (16, 50), choosing)
    prompts = DistinctPrompts.of(PROMPTS, 4, it.pad_token_id).to(torch.device("meta"))
    limits_B = torch.full((16,), 50, device="meta")
    batch.start(prompts, limits_B, torch.rand(16, 50, device="meta"))
    batch.step(16, 64)
    with pytest.raises(RuntimeError, match="meta tensors"):
        batch.drop_finished(16, 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_captured_steps_are_as_exact_as_the_models_own_forward(family, bf16):
    it = policy(family).to("cuda")
    it.bf16 = bf16
    sampler = Sampler(it, 50)
    for _ in range(2):
        samples = sampler.sample(PROMPTS, 4, uniforms(16, 50))
    assert sampler.backend == "by the CUDA engine, CUDA graph"
    with torch.no_grad():
        fresh = it.evaluate(samples.inputs)
    if not bf16:
        assert_exact(it, samples)
    assert float((samples.logprobs_BT - fresh.logprobs_BT).abs().mean()) < 0.01
    assert float((samples.values_BT - fresh.values_BT).abs().mean()) < 0.01


@catches("all weights there twice while they are read anew")
def test_of_the_weights_that_are_read_anew_one_layer_at_a_time_is_there_twice(monkeypatch):
    it = policy()
    sampler = Sampler(it, 4, capture=RecordedGraphs())
    sampler.sample(PROMPTS, 1, uniforms(4, 4))
    change(it)
    fresh, most = [], []
    read = weights._layer_weights

    def counted(*given):
        layer = read(*given)
        fresh.append(weakref.ref(layer))
        most.append(sum(x() is not None for x in fresh))
        return layer

    monkeypatch.setattr(weights, "_layer_weights", counted)
    sampler.sample(PROMPTS, 1, uniforms(4, 4))
    assert most == [1] * it.causal_lm.config.num_hidden_layers


@catches("an engine held on to when it is given back")
@pytest.mark.parametrize("kept", [True, False])
def test_an_engine_that_is_given_back_samples_the_same_and_leaves_nothing(kept, monkeypatch):
    held, made = [], CudaBatch.__init__

    def noted(self, decoder, *rest):
        held.extend(weakref.ref(x) for x in (self, decoder, decoder.weights))
        made(self, decoder, *rest)

    monkeypatch.setattr(CudaBatch, "__init__", noted)
    it = policy()
    sampler = Sampler(it, 12, capture=RecordedGraphs(), keep_engine=kept)
    for _ in range(2):
        found = sampler.sample(PROMPTS, 2, uniforms(8, 12))
        assert any(x() is not None for x in held) is kept
        assert_same(found, Sampler(it, 12).sample(PROMPTS, 2, uniforms(8, 12)))
        change(it)
    assert len(held) == (3 if kept else 6)
