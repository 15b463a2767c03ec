"""Guess, calculator and rooms: their rules, and the right answers that are known of them."""

import itertools
import random
from statistics import mean

import pytest
import torch

from lmpg.gym.environments.problems.aliased import short_corridor
from lmpg.gym.environments.problems.finite import FiniteEnv
from lmpg.language.data.prompts import Prompt
from lmpg.language.worlds import calculator, guess, rooms
from lmpg.language.worlds.making import blank_model
from lmpg.language.worlds.registry import WORLDS
from lmpg.language.worlds.tasks import guessing, rooms_alike, tool_sums
from lmpg.language.worlds.tokenizers import character_tokenizer
from tests.support.planted import catches


def played(environment, turns, **row):
    """(observations, reward of each turn, whether it ended) of an episode."""
    said = [environment.reset(seed=0, options=row)[0]]
    rewards, done = [], False
    for turn in turns:
        observation, reward, done, _, _ = environment.step(turn)
        said.append(observation)
        rewards.append(reward)
    return said, rewards, done


@catches("a guess above the number is told to be too low", "the right guess goes on")
def test_a_game_of_guess_says_where_the_number_lies_until_it_is_found():
    said, rewards, done = played(guessing.Guess(), ["8", "12", "x", "10"], number=10)
    assert said == ["1-15?\n", "higher\n", "lower\n", "what?\n", "right\n"]
    assert rewards == [-1, -1, -1, -1]
    assert done


@catches("what is known forgets earlier answers")
def test_the_state_of_a_game_is_what_is_known_and_the_same_for_all_that_know_it():
    game, other = guessing.Guess(), guessing.Guess()
    assert game.reset(seed=0, options={"number": 10})[1] == {"state": "1-15"}
    game.step("8")
    assert game.step("4")[4] == {"state": "9-15"}
    other.reset(seed=1, options={"number": 9})
    assert other.step("8")[4] == {"state": "9-15"}


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10, 15])
def test_binary_search_is_the_best_play_and_takes_as_many_guesses_as_computed(most):
    taken = []
    for number in range(1, most + 1):
        low, high, game = 1, most, guessing.Guess()
        game.reset(seed=0, options={"number": number, "most": most})
        for count in itertools.count(1):
            middle = (low + high) // 2
            answer, _, done, _, _ = game.step(str(middle))
            if done:
                taken.append(count)
                break
            low, high = (middle + 1, high) if answer == guessing.HIGHER else (low, middle - 1)
    assert mean(taken) == pytest.approx(guessing.best_mean(most))
    assert guessing.best_mean(15) == pytest.approx(49 / 15)
    tree = {1: 1, 3: 1 + 2 + 2, 7: 1 + 2 * 2 + 4 * 3}  # depths of a full binary tree
    assert most not in tree or guessing.best_mean(most) == pytest.approx(tree[most] / most)


def test_guessing_at_random_among_what_is_left_is_as_quicksort():
    """2 (1 + 1/N) H_N − 3 comparisons, 4.08 for N = 15; and played games agree."""
    harmonic = sum(1 / k for k in range(1, 16))
    assert guessing.random_mean(15) == pytest.approx(2 * (16 / 15) * harmonic - 3)
    rng = random.Random(0)
    lengths = [guessing.played(rng, careless=0.0).count("<eos>") + 1 for _ in range(2000)]
    assert mean(lengths) == pytest.approx(guessing.random_mean(15), abs=0.1)


def test_guesses_are_counted_in_a_conversation():
    assert guessing.guesses("8<eos>higher\n12<eos>lower\n10") == 3
    assert guessing.guesses("8") == 1
    texts = ["8higher\n12", "8"]
    assert guess.guesses([], texts)["guesses"] == 1.5
    assert guess.guesses([], texts)["guesses_over_best"] == pytest.approx(1.5 / (49 / 15))


@catches("the tool answers in the policy's place", "a wrong answer is paid")
def test_the_calculator_adds_and_pays_for_the_right_answer_alone():
    row = {"prompt": "12+34=?\n", "answer": "46"}
    assert played(tool_sums.Calculator(), ["add 12 34", "46"], **row) == (
        ["12+34=?\n", "46\n", ""],
        [0, 1],
        True,
    )
    assert played(tool_sums.Calculator(), ["45"], **row)[1:] == ([0], True)
    said, rewards, done = played(tool_sums.Calculator(), ["add 12", "add 1 2", "46"], **row)
    assert said[1:] == ["what?\n", "3\n", ""]
    assert (rewards, done) == ([0, 0, 1], True)


def test_the_calculators_sums_are_in_one_part_alone_and_its_shares_are_counted():
    parts = tool_sums.parts([20, 30], random.Random(0))
    assert [len(part) for part in parts] == [20, 30]
    assert len({row["prompt"] for part in parts for row in part}) == 50
    rows = [("add 12 34" + "46\n46", "46"), ("46", "46"), ("45", "46")]
    prompts = [Prompt("", [], {"answer": answer}) for _, answer in rows]
    found = calculator.tool_use(prompts, [text for text, _ in rows])
    assert found == {"tool_used": 1 / 3, "accuracy": 2 / 3, "accuracy_alone": 0.5}


@catches("no room is the reversed one", "the wall of the first room leads on")
def test_the_rooms_are_the_corridor_of_gym():
    for moves in itertools.product("lr", repeat=5):
        env, text = FiniteEnv(short_corridor()), rooms_alike.Rooms()
        seen, _ = env.reset(seed=0)
        said, _ = text.reset(seed=0, options={})
        for move in moves:
            seen, reward, ended, _, _ = env.step("lr".index(move))
            said, its_reward, its_end, _, _ = text.step(move)
            assert (its_reward, its_end) == (reward, ended)
            assert (said, seen) == (rooms_alike.LOOK, 0)
            if ended:
                break
            assert text.room == env.state


def test_the_rooms_have_the_corridors_optimum():
    best = rooms_alike.BEST_RIGHT
    assert rooms_alike.value(best) == pytest.approx(-11.6569, abs=1e-4)
    assert max(map(rooms_alike.value, (best - 0.01, best + 0.01))) < rooms_alike.value(best)
    assert rooms.walked([], ["r<eos>room?\nl<eos>room?\nr", "lroom?\nrroom?\nr"]) == {
        "right": 4 / 6
    }


@catches("a model that remembers the room before")
def test_the_model_of_the_rooms_sees_the_present_room_alone(tmp_path):
    from transformers import AutoModelForCausalLM, MistralConfig

    tokenizer = character_tokenizer(rooms_alike.CHARACTERS)
    blank_model(tmp_path, tokenizer, {**rooms.SHAPE}, 0, MistralConfig)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    texts = ["room?\n", "room?\nl<eos>room?\n", "room?\nr<eos>room?\nr<eos>room?\n"]
    with torch.no_grad():
        last = [
            model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
            for text in texts
        ]
    torch.testing.assert_close(last[1], last[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(last[2], last[0], atol=1e-6, rtol=0)
    assert last[0].std() > 1e-3


@pytest.mark.parametrize(
    ("world", "made"),
    [(guess, guess._games), (calculator, calculator._conversations), (rooms, rooms._walks)],
)
def test_what_a_warm_start_learns_fits_the_models_context_and_characters(world, made):
    train, held_out = made()
    characters = vars(world)["task"].CHARACTERS
    assert len(set(characters)) == len(characters)  # a character is one token
    assert len(held_out) >= 100
    for row in [*train[::20], *held_out]:
        turns = "".join(row.values()).split("<eos>")
        assert set("".join(turns)) <= set(characters)
        assert len("".join(turns)) + len(turns) < world.SHAPE["max_position_embeddings"]


def test_the_worlds_are_known_by_their_names():
    assert {"guess", "calculator", "rooms"} <= set(WORLDS)
