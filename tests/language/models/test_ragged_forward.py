"""Ragged batches: what is read, in which blocks, and by which forward."""

import pytest
import torch

from lmpg.language.models.architectures import architecture, deviation
from lmpg.language.models.forward import response_states as states
from lmpg.language.models.forward.ragged import Ragged, _block_sizes
from lmpg.language.models.forward.response_states import response_states
from tests.language.models.test_architectures import OWN, PROMPTS, RESPONSES, SHARED
from tests.support.families import FAMILIES, tiny_family
from tests.support.planted import catches


def tiny_trunk(family):
    return tiny_family(family).base_model


@pytest.fixture(autouse=True)
def agrees(monkeypatch):
    """Otherwise a forward that errs is not used, and nobody sees that it does; gives the check."""
    check = states._agrees
    monkeypatch.setattr(states, "_agrees", lambda *_: True)
    return check


def test_padding_is_not_read_whatever_it_holds():
    trunk = tiny_trunk("gpt2")
    junk = {**SHARED, "prompt_ids": SHARED["prompt_ids"].clone()}
    column = torch.arange(junk["prompt_ids"].shape[1])
    empty = column < junk["prompt_ids"].shape[1] - junk["prompt_lengths"][:, None]
    junk["prompt_ids"][empty] = 17
    junk["response_ids"] = torch.nn.functional.pad(SHARED["response_ids"], (0, 3), value=18)
    found, expected = response_states(trunk, junk), response_states(trunk, SHARED)
    assert torch.equal(found.hidden_ND, expected.hidden_ND)


def test_prompts_that_rows_share_are_read_once_and_little_padding_is_read():
    read = len(Ragged.of(SHARED).ids_N)
    prompts = sum(map(len, PROMPTS))
    fed = 4 * sum(max(len(response) - 1, 0) for response in RESPONSES)
    assert read == prompts + fed  # rows of one length share a block, so there is no padding
    own = Ragged.of(OWN)
    assert own.num_shared == 0
    lengths = (OWN["prompt_lengths"] + OWN["response_lengths"] - 1)[OWN["response_lengths"] > 0]
    assert sorted(lengths.tolist()) == [6, 7, 7, 10, 12]
    assert len(own.ids_N) == 3 * 7 + 2 * 12


def test_rows_of_a_block_differ_by_a_sixth_of_their_length_at_most():
    assert _block_sizes([80, 79, 75, 74, 60, 5, 5, 4, 0]) == [4, 1, 2, 1, 1]
    assert _block_sizes([]) == []


@catches("the attention of transformers stays changed after a forward")
def test_transformers_attention_is_chosen_for_the_time_of_a_forward_alone(monkeypatch):
    trunk = tiny_trunk("llama")
    assert trunk.config._attn_implementation == "sdpa"
    used = []
    forward = type(trunk).forward

    def watched(self, **arguments):
        used.append(self.config._attn_implementation)
        return forward(self, **arguments)

    monkeypatch.setattr(type(trunk), "forward", watched)
    states._padded_states(trunk, OWN)
    with torch.autocast("cpu", torch.bfloat16):
        states._padded_states(trunk, OWN)
    assert used == ["sdpa", "eager"]
    assert trunk.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_look_at_a_trunk_before_it_is_trusted_finds_it_right(family, agrees, monkeypatch):
    trunk, found = tiny_trunk(family), []
    monkeypatch.setattr(states, "deviation", lambda *x: found.append(deviation(*x)) or found[-1])
    assert agrees(trunk, architecture(trunk))
    assert found[0] < 1e-5
