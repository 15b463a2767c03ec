from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lmpg.algorithms import ALGORITHMS
from lmpg.language.data.prompts import prompts_from_rows
from lmpg.language.models.loading import load_policy, load_tokenizer
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds import addition, reviews
from lmpg.language.worlds.cache import read_facts
from lmpg.language.worlds.tokenizers import byte_pair_tokenizer, character_tokenizer
from lmpg.runtime.seeding import generator
from lmpg.settings.raw import merged

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
SMALL |= {"num_hidden_layers": 1, "num_key_value_heads": 2}


@pytest.fixture
def worlds_of_the_session(tmp_path_factory, monkeypatch) -> None:
    """Worlds are made once for all tests of this session, whichever of its processes asks first."""
    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    monkeypatch.setenv("LMPG_CACHE", str(shared / "worlds"))


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Both worlds, much smaller, in a cache of their own."""
    monkeypatch.setenv("LMPG_CACHE", str(tmp_path / "cache"))
    for recipe in (reviews, addition):
        monkeypatch.setattr(recipe, "SHAPE", {**recipe.SHAPE, **SMALL})
    for name, value in {"HELD_OUT": 16, "OPENINGS": 64, "TEXTS": 48, "PAIRS": 32}.items():
        monkeypatch.setattr(reviews, name, value)
    data = (reviews._openings, reviews._texts, reviews._preferences)
    for function in data:
        function.cache_clear()
    yield tmp_path / "cache"
    for function in data:
        function.cache_clear()


def test_the_reviews_world_is_made_of_plain_folders_and_loads(small, capsys):
    world = reviews.build()
    said = capsys.readouterr().out
    assert "reviews: warm start | step 6/6 | loss" in said
    assert "reviews: reward model | step 2/2 | loss" in said
    assert AutoModelForCausalLM.from_pretrained(world.model_path).config.num_hidden_layers == 1
    (judge,) = world.reward_models
    assert AutoModelForSequenceClassification.from_pretrained(judge).config.num_labels == 1
    assert AutoTokenizer.from_pretrained(judge).eos_token_id is not None
    assert world.facts == {"reward_model_pair_accuracy": read_facts(Path(judge))["pair_accuracy"]}


def test_a_world_is_made_once_and_always_the_same(small, monkeypatch, capsys):
    first = reviews.build().model_path
    capsys.readouterr()
    assert reviews.build().model_path == first
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("LMPG_CACHE", str(small / "again"))
    torch.manual_seed(1)  # whatever the caller's generator is at
    second = reviews.build().model_path
    assert second != first
    assert second.name == first.name
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_other_settings_of_an_early_stage_remake_the_later_ones(small, monkeypatch):
    before = reviews.build()
    monkeypatch.setattr(reviews, "VERSION", reviews.VERSION + 1)
    after = reviews.build()
    assert after.model_path != before.model_path
    assert after.reward_models != before.reward_models


def test_making_a_world_leaves_the_callers_random_numbers_alone(small):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    reviews.build()
    assert torch.equal(torch.rand(3), expected)


def test_held_out_openings_are_in_nothing_that_is_trained_on(small):
    world = reviews.build()
    held_out = {row["prompt"] for row in world.held_out_rows}
    assert len(held_out) == 16
    trained = [*world.train_rows, *reviews.supervised().train_rows]
    trained += reviews.preferences().train_rows
    assert held_out.isdisjoint(row["prompt"] for row in trained)


def test_the_gold_scorer_only_judges(small):
    world = reviews.build()
    assert world.reward_functions == ()
    prompts = prompts_from_rows(world.held_out_rows, load_tokenizer(str(world.model_path)), 60)
    found = world.eval_metric(prompts, ["delicious"] * len(prompts))
    assert found == {"gold": 0.0, "gold_positive": 1.0, "gold_grammatical": 0.0}


def test_problems_to_learn_to_check_and_to_test_are_disjoint():
    parts = [{row["prompt"] for row in rows} for rows in addition._problems().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) >= 8098
    assert len(addition._problems()["held out"]) == 512


def test_the_warm_start_of_addition_ends_when_enough_is_right(small, monkeypatch, capsys):
    monkeypatch.setattr(addition, "ENOUGH", 0.0)
    world = addition.build()
    assert f"step {addition.CHECK_EVERY}/" in capsys.readouterr().out.splitlines()[-1]
    row = world.held_out_rows[0]
    answers = [row["answer"], "x"]
    columns = {"answer": [row["answer"]] * 2}
    with Scorer(RewardSettings(functions=world.reward_functions)) as scorer:
        scores = scorer.score([row["prompt"]] * 2, answers, [[], []], columns)
    assert scores.totals == [1.0, 0.0]


@pytest.mark.parametrize("recipe", [reviews, addition])
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_algorithm_has_valid_settings_for_every_world(recipe, algorithm):
    values = merged({"algorithm": {}}, recipe.preset(ALGORITHMS[algorithm]))
    assert LanguageSettings[ALGORITHMS[algorithm]](**values).run.total_steps > 0


def test_tokenizers_give_text_back_as_it_was():
    learned = byte_pair_tokenizer(["The soup was fresh."] * 3, 300)
    for text in (" The soup, été!", "\n two  spaces "):
        assert learned.decode(learned(text)["input_ids"]) == text
    characters = character_tokenizer("0123456789+=")
    assert len(characters("12+34=")["input_ids"]) == 6
    assert characters.decode(characters("12+34=")["input_ids"]) == "12+34="


def sampled(path: Path, rows: list[dict], new_tokens: int) -> list[str]:
    """One sampled response per row, decoded."""
    tokenizer = load_tokenizer(str(path))
    policy = load_policy(ModelSettings(path=str(path)), tokenizer, critic=False, temperature=1.0)
    uniforms = torch.rand((len(rows), new_tokens), generator=generator("test"))
    ids = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    samples = Sampler(policy, new_tokens).sample(ids, 1, uniforms)
    lengths = samples.inputs["response_lengths"].tolist()
    found = [r[:n] for r, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
    return tokenizer.batch_decode(found, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("worlds_of_the_session")
def test_the_worlds_start_where_there_is_something_to_learn():
    world = reviews.build()
    assert world.facts["reward_model_pair_accuracy"] >= 0.90
    prompts = prompts_from_rows(world.held_out_rows, load_tokenizer(str(world.model_path)), 48)
    responses = sampled(world.model_path, world.held_out_rows, 48)
    found = world.eval_metric(prompts, responses)
    assert found["gold_positive"] <= 0.60
    assert found["gold_grammatical"] >= 0.80
    assert len(set(responses)) / len(responses) > 0.95
    sums = addition.build()
    prompts = prompts_from_rows(sums.held_out_rows, load_tokenizer(str(sums.model_path)), 12)
    responses = sampled(sums.model_path, sums.held_out_rows, addition.NEW_TOKENS)
    assert 0.2 <= sums.eval_metric(prompts, responses)["accuracy"] <= 0.7
