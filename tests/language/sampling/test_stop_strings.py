"""Stop strings: a response ends with the token in which one is complete, on every engine."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from lmpg.language.data.tokenizing import completion_texts
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import DistinctPrompts
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.language.sampling.stops import stopping
from tests.language.data.test_chat import merging_tokenizer
from tests.language.sampling.test_cpu_engine import assert_exact
from tests.language.sampling.test_sampling import PROMPTS, policy, responses, uniforms
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.recorded_graphs import RecordedGraphs
from tests.support.tiny import EOS, tiny_tokenizer
from tests.support.tiny_tokenizers import character_tokenizer

STEPS = 24


def search_for(tokenizer, *strings, eos=()):
    return stopping(strings, partial(completion_texts, tokenizer, eos_token_ids=()), eos)


def last_token(tokenizer, prompt, response, *strings, at_once=1, eos=()):
    """Where a response of these ids ends; its length where no stop string ends it."""
    search = search_for(tokenizer, *strings, eos=eos)(DistinctPrompts.of([prompt], 1, 0))
    for start in range(0, len(response), at_once):
        search.read([0], [[token] for token in response[start : start + at_once]])
    return int(search.last_tokens(len(response)))


def slowly(tokenizer, prompt, response, *strings):
    """The same by definition: the first beginning of the response whose text holds a string."""
    for n in range(1, len(response) + 1):
        (text,) = completion_texts(tokenizer, [prompt], [response[:n]], ())
        if any(string in text for string in strings):
            return n - 1
    return len(response)


TOKENIZERS = {
    "characters": tiny_tokenizer,
    "bytes": merging_tokenizer,
    "spaces first": partial(character_tokenizer, space_first=True),
}
TEXTS = ["ab cd\n\nef", " END. x", "aé–z–é", "x\n\n\ny", "ab", "ééé", "a b  c   d"]
STRINGS = [("\n\n",), (" END",), ("–",), ("é–", "z"), ("b c", "  "), ("d\n\ne",), ("nowhere",)]


@catches(
    "a stop string looked for in single tokens",
    "a stop string of several bytes found in the first of its tokens",
)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_response_ends_with_the_first_token_after_which_its_text_holds_a_stop_string(kind):
    tokenizer = TOKENIZERS[kind]()
    prompt = tokenizer("Say it", add_special_tokens=False)["input_ids"]
    places = set()
    for text in TEXTS:
        ids = tokenizer(f"Say it{text}", add_special_tokens=False)["input_ids"][len(prompt) :]
        for strings in STRINGS:
            place = slowly(tokenizer, prompt, ids, *strings)
            for at_once in (1, 3, 100):
                found = last_token(tokenizer, prompt, ids, *strings, at_once=at_once)
                assert found == place, (text, strings)
            places.add(place - len(ids))
    assert len(places) > 3


def test_a_string_that_began_in_the_prompt_does_not_count_and_more_in_its_token_stays():
    tokenizer = merging_tokenizer()
    line, both = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in ("\n", "\n\n"))
    assert len(both) == 1
    assert last_token(tokenizer, line, line, "\n\n") == 1
    assert last_token(tokenizer, line, [*line, *line], "\n\n") == 1
    assert last_token(tokenizer, line, both, "\n") == 0  # with a line break more than was asked for


def test_nothing_after_an_eos_token_is_looked_at():
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer("ab")["input_ids"], EOS, *tokenizer("c")["input_ids"]]
    assert last_token(tokenizer, [5], ids, "c") == 3
    assert last_token(tokenizer, [5], ids, "c", eos=(EOS,)) == len(ids)


def samplers():
    """A sampler of each engine, alike but for how often it asks which rows have finished."""
    cuda = Sampler(policy(), STEPS, capture=RecordedGraphs(), stops=stops())
    cuda.check_every = 9
    own = Sampler(policy(), STEPS, stops=stops())
    unknown = Sampler(policy(), STEPS, stops=stops())
    unknown._deviation = 1.0  # as for an architecture that lmpg does not know
    seldom = Sampler(policy(), STEPS, stops=stops())
    seldom.check_every = 13
    return {"cpu": own, "cuda": cuda, "transformers": unknown, "seldom": seldom}


def stops():
    return search_for(tiny_tokenizer(), "b", "e", "4", eos=(EOS,))


@catches(
    "a response ended by a stop string counted as cut off",
    "a stop string in a row's last steps overlooked",
    "CUDA engine: stop strings of places that hold no row",
)
@pytest.mark.parametrize("engine", ["cpu", "cuda", "transformers", "seldom"])
@pytest.mark.parametrize("greedy", [False, True])
def test_every_engine_gives_the_beginning_of_what_it_would_have_sampled(engine, greedy):
    it, tokenizer = policy(), tiny_tokenizer()
    drawn = None if greedy else uniforms(20, STEPS)
    whole = Sampler(it, STEPS).sample(PROMPTS, 5, drawn)
    sampler = samplers()[engine]
    found = sampler.sample(PROMPTS, 5, drawn)
    if engine != "seldom":
        assert engine in sampler.backend.lower() or "own forward" in sampler.backend
    stopped = 0
    for b, (ids, all_ids) in enumerate(zip(responses(found), responses(whole))):
        place = last_token(tokenizer, PROMPTS[b // 5], all_ids, "b", "e", "4")
        n = min(place + 1, len(all_ids))
        assert ids == all_ids[:n]
        assert found.finished_B[b] == (place < len(all_ids) or whole.finished_B[b])
        stopped += place < len(all_ids)
        torch.testing.assert_close(
            found.logprobs_BT[b, :n], whole.logprobs_BT[b, :n], rtol=1e-5, atol=1e-5
        )
    assert stopped > 2
    assert_exact(it, found)


def test_rows_that_have_stopped_are_not_computed_any_further():
    sampler = samplers()["cpu"]
    search = sampler._stops
    read = []

    def counted(prompts):
        found = search(prompts)
        plain = found.read
        found.read = lambda rows, tokens: read.append(len(rows)) or plain(rows, tokens)
        return found

    sampler._stops = counted
    found = sampler.sample(PROMPTS, 8, uniforms(32, STEPS))
    assert read[0] == 32
    assert read[-1] < 16
    assert sum(read) < int(found.mask_BT.sum()) * 1.25


def test_a_line_break_can_be_written_in_a_shell_and_an_empty_text_stops_nothing():
    assert SamplingSettings(stop=(r"\n\nQ:", "b")).stop == ("\n\nQ:", "b")
    with pytest.raises(ValueError, match=r"sampling\.stop = \['a', ''\] has an empty text in it"):
        SamplingSettings(stop=("a", ""))


@catches("stop strings in training alone, not in evaluation")
def test_rewards_see_the_stop_string_in_training_and_in_evaluation(tmp_path):
    parts = own_parts(tmp_path / "parts")
    seen = tmp_path / "seen.jsonl"
    (tmp_path / "see.py").write_text(
        "import json\n"
        "def see(completions, completion_ids):\n"
        f"    with open({str(seen)!r}, 'a') as file:\n"
        "        for text, ids in zip(completions, completion_ids):\n"
        "            file.write(json.dumps([text, ids]) + '\\n')\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    flags = {
        **parts,
        "rewards.functions": f"{tmp_path / 'see.py'}:see",
        "sampling.stop": "e",
        "rewards.missing-eos-penalty": 100,
        "update.rollout-size": 24,
        "evaluation.size": 24,
        "run.total-steps": 1,
        "run.output-dir": tmp_path / "run",
    }
    run_here("reinforce", flags)
    rows = [json.loads(line) for line in seen.read_text().splitlines()]
    assert len(rows) == 3 * 24
    ended = [text for text, ids in rows if "e" in text]
    assert len(ended) > 3
    assert all(text.index("e") == len(text) - 1 for text in ended)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    cut = [len(ids) == 12 and ids[-1] != EOS and "e" not in text for text, ids in rows[24:48]]
    metrics = json.loads(line)
    assert metrics["completions/clipped_ratio"] == pytest.approx(sum(cut) / 24)
    lengths = sum(len(text) for text, _ in rows[24:48]) / 24
    shaped = lengths - 100 * sum(cut) / 24
    assert metrics["objective/shaped_scores"] == pytest.approx(shaped, rel=1e-5)
