"""Observations that no row has room for: found out without being read to their end."""

from __future__ import annotations

import pytest

from lmpg.language.environments import continuation
from lmpg.language.rollouts import several_turns
from tests.language.rollouts.test_several_turns import talking
from tests.support.asking import Asks
from tests.support.planted import catches


class Long(Asks):
    """Says more than fits, in its first or its second turn, or hardly less."""

    def reset(self, *, seed, options):
        self.taken = 0
        return "x" * {"a": 5000, "bc": 60}.get(options["prompt"], 3), {}

    def step(self, action):
        self.taken += 1
        return "y" * 5000 if self.taken == 2 else "go on", 1.0, False, False, {}


@catches("a far too long observation tokenised whole", "a cut observation read as if it were whole")
@pytest.mark.parametrize("part", [0, 16])
def test_of_a_far_too_long_observation_no_more_is_read_than_tells_that_it_is(part, monkeypatch):
    read = []
    monkeypatch.setattr(several_turns, "PART", 1 << 20)
    whole, _ = talking(Long, context=64)
    for name in ("encode", "prompt_ids"):
        ids_of = getattr(continuation, name)
        noted = lambda tokenizer, text, *rest, ids_of=ids_of: (  # noqa: E731
            read.append(len(text)) or ids_of(tokenizer, text, *rest)
        )
        monkeypatch.setattr(continuation, name, noted)
    monkeypatch.setattr(several_turns, "PART", part)
    found, _ = talking(Long, context=64)
    assert (max(read) == 5000) == (part == 0)  # a part that tells nothing
    assert found.ids == whole.ids
    assert [x.ids for x in found.prompts] == [x.ids for x in whole.prompts]
    assert [talk.end for talk in found.talks] == [talk.end for talk in whole.talks]
    assert [talk.turns for talk in found.talks] == [talk.turns for talk in whole.talks]
    assert {talk.end for talk in found.talks} == {"error", "max_tokens"}
