"""What models keep between tokens moves with their rows, whoever keeps it."""

from __future__ import annotations

import pytest
import torch

from lmpg.language.sampling.engines import transformers as engine
from lmpg.language.sampling.engines.caches import kept, named
from lmpg.language.sampling.engines.transformers import refuse_unusable_cache
from lmpg.language.sampling.sampler import Sampler
from lmpg.settings.section import UserError
from tests.language.models.test_padding import policy_of_family
from tests.support.planted import catches
from tests.support.tiny import EOS

PROMPTS = [[8, 2, 30, 31, 4], [5, 9, 3], [7], [11, 12, 13]]
KINDS = ["llama", "mamba", "rwkv", "minimax", "recurrent_gemma", "llama4_text", "trocr", "zamba2"]
ODD = {
    "rwkv": (engine, "reordered", lambda cache, order_R: cache),
    "minimax": (engine, "reordered", lambda cache, order_R: cache.reorder_cache(order_R) or cache),
    "recurrent_gemma": (engine, "reorder_layers", lambda layers, order_R: None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_token_by_token_what_it_gives_for_whole_texts(kind):
    refuse_unusable_cache(policy_of_family(kind))


@catches("a cache whose rows do not move when rows leave")
@pytest.mark.parametrize("kind", ODD)
def test_a_cache_that_stays_behind_is_refused(kind, monkeypatch):
    place, name, wrong = ODD[kind]
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(UserError, match=r"keeps between tokens does not|fails on texts that go on"):
        refuse_unusable_cache(policy_of_family(kind))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_passed_on_by_the_name_that_the_model_has_for_it(name):
    """transformers 5.24 calls it `cache`; asked for the older names, its outputs warn."""
    trunk = torch.nn.Module()
    forwards = {"cache": lambda ids, cache=None: ids, "past_key_values": lambda past_key_values: 0}
    trunk.forward = forwards[name]
    given = object()
    assert named(trunk, given) == {name: given}
    assert kept({"last_hidden_state": torch.zeros(1), **named(trunk, given)}) == {name: given}


@catches("the prompts of a recurrent model padded to one length", "rows returned by length")
@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma", "trocr"])
def test_prompts_of_different_lengths_are_sampled_as_each_alone(kind):
    policy = policy_of_family(kind)
    policy.eos_token_ids = (EOS, *range(30, 50))
    drawn = torch.rand(2 * len(PROMPTS), 6, generator=torch.Generator().manual_seed(0))
    together = Sampler(policy, 6).sample(PROMPTS, 2, drawn)
    assert together.finished_B.any()
    assert len(set(together.inputs["response_lengths"].tolist())) > 2  # rows leave one by one
    for i, prompt in enumerate(PROMPTS):
        alone = Sampler(policy, 6).sample([prompt], 2, drawn[2 * i : 2 * i + 2])
        for b in range(2):
            length = int(alone.inputs["response_lengths"][b])
            row = together.rows(torch.tensor([2 * i + b]))
            assert row.inputs["response_lengths"].tolist() == [length]
            assert row.inputs["prompt_ids"][0, -len(prompt) :].tolist() == prompt
            for name in ("response_ids", "logprobs_BT", "entropy_BT", "values_BT"):
                both = [x.inputs[name] if "ids" in name else getattr(x, name) for x in (row, alone)]
                torch.testing.assert_close(both[0][0, :length], both[1][b, :length])
    torch.testing.assert_close(together.logprobs_BT, policy.plain_logprobs(together.inputs))
