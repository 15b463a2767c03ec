"""Prompts are read some at a time, however many there are: less memory, the same samples."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmpg.language.models import inputs
from lmpg.language.models.footprint.needs import Work, reading
from lmpg.language.models.footprint.shape import shape_of
from lmpg.language.sampling.engines import prefill
from lmpg.language.sampling.engines.policy_weights import policy_weights
from lmpg.language.sampling.sampler import Sampler
from tests.language.models.test_padding import policy_of_family
from tests.language.sampling.test_cpu_engine import policy, uniforms
from tests.support.objectives import tiny_policy
from tests.support.planted import catches
from tests.support.recorded_graphs import RecordedGraphs
from tests.support.tiny import tiny_model

PROMPTS = [[5, 9, 3, 7, 7], [7], [8, 2, 30, 31], [11, 12], [5, 9, 3, 7, 7], [4, 4, 4], [6, 6]]
WIDTH = 5
"""Of all distinct prompts, with their padding."""


def sampled(it, monkeypatch, prompts: int, **options):
    """A rollout whose prompts are read by so many at a time, and the shapes that its layers or its
    trunk were given with the prompts."""
    monkeypatch.setattr(inputs, "PROMPT_TOKENS", prompts * WIDTH)
    seen: list[int] = []
    embedded = prefill.embedded

    def seeing(w, ids, *rest):
        seen.append(len(ids))
        return embedded(w, ids, *rest)

    monkeypatch.setattr(prefill, "embedded", seeing)
    hook = it.trunk.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    sampler = Sampler(it, 8, **options)
    sampler.sample(PROMPTS[:1], 1, uniforms(1, 8))  # looks at the engine first
    seen.clear()
    samples = sampler.sample(PROMPTS, 2, uniforms(2 * len(PROMPTS), 8))
    hook.remove()
    monkeypatch.undo()
    return samples, seen


def assert_alike(found, expected):
    assert torch.equal(found.inputs["response_ids"], expected.inputs["response_ids"])
    for name in ("logprobs_BT", "entropy_BT"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@catches(
    "all prompts of a rollout read at once",
    "keys of one part of the prompts given to the rows of another",
)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("graphs", [False, True])
def test_lmpgs_engines_sample_the_same_from_prompts_in_parts(kind, graphs, monkeypatch):
    it = policy(kind)
    options = {"capture": RecordedGraphs()} if graphs else {}
    expected, whole = sampled(it, monkeypatch, 100, **options)
    found, parts = sampled(it, monkeypatch, 4, **options)
    assert whole[0] == 6 * WIDTH  # two of the seven are equal
    assert parts[:2] == [4 * WIDTH, 2 * WIDTH]
    assert_alike(found, expected)


@catches("a part's cache in the place of all")
@pytest.mark.parametrize(
    ("kind", "in_parts"),
    [("mixtral", True), ("qwen3_moe", True), ("afmoe", True), ("mamba", False)],
)
def test_so_does_a_model_whose_caches_can_be_put_together(kind, in_parts, monkeypatch):
    it = policy_of_family(kind)
    expected, whole = sampled(it, monkeypatch, 100)
    found, parts = sampled(it, monkeypatch, 2)
    assert whole[0] == 6 * WIDTH
    assert parts[:2] == [2 * WIDTH, 2 * WIDTH if in_parts else 6 * WIDTH]
    assert_alike(found, expected)


def test_a_prompt_is_never_cut_and_what_they_take_is_bounded():
    ids = torch.zeros(5, 3 * inputs.PROMPT_TOKENS, dtype=torch.long)
    assert [len(ids[part]) for part in inputs.read_together(ids)] == [1] * 5
    assert inputs.read_together(ids[:, :10]) == [slice(0, 819)]
    work = Work(shape_of(tiny_model()), rows=1, prompt=256, response=8)
    assert reading(work, 16) < reading(work, 32) == reading(work, 3200)


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made within it: at its most, those that were there at once."""

    now = most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        own = {
            x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)
        }
        for x in tree_leaves(made):
            if torch.is_tensor(x) and (storage := x.untyped_storage())._cdata not in own:
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.freed, storage.nbytes())
        return made

    def freed(self, size: int) -> None:
        self.now -= size


@torch.no_grad()
@pytest.mark.parametrize("bf16", [False, True])
def test_what_reading_takes_is_counted(bf16, monkeypatch):
    # packed weights do not tell their size
    monkeypatch.setattr("lmpg.language.sampling.engines.linear._can_be_packed", lambda _: False)
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "max_position_embeddings": 128,
    }
    it = tiny_policy(tiny_model(**sizes), bf16=bf16)
    weights = policy_weights(it, 100).decoder
    ids, lengths = torch.full((16, 100), 5), torch.full((16,), 100)
    given = ids, *inputs.mask_and_positions(torch.zeros_like(lengths), lengths, 100)
    with Live() as live:
        prefill.read_prompts(weights, *given, lambda layer, part, key_value: None)
    work = Work(shape_of(it.model), rows=1, prompt=100, response=8, product=2 if bf16 else 4)
    assert reading(work, 16) == pytest.approx(live.most, rel=0.1)
