from __future__ import annotations

import math

import pytest

from lmpg.language.data.reward_pairs import reward_pairs_from_rows
from lmpg.language.rewards.request import RewardRequest
from lmpg.language.rewards.reward_model import ModelReward, model_name
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import tiny_model, tiny_tokenizer
from tests.support.tiny_tokenizers import character_tokenizer


class Lengths:
    """Stands for a reward model: the score is the number of ids, and every row is kept."""

    def __init__(self):
        self.rows = []

    def score(self, rows):
        self.rows += rows
        return [math.inf if len(row) == 4 else float(len(row)) for row in rows]


def answered(reward, prompt, *completions):
    count = len(completions)
    return reward.reply(RewardRequest([prompt] * count, list(completions), [[1]] * count, {}))


@pytest.fixture
def saved_model(tmp_path):
    tiny_model("reward").save_pretrained(tmp_path / "judge")
    tiny_tokenizer().save_pretrained(tmp_path / "judge")
    return str(tmp_path / "judge")


def test_a_model_reads_prompt_and_completion_as_its_training_did():
    tokenizer, lengths = character_tokenizer(), Lengths()
    answered(ModelReward("judge", lengths, tokenizer, 50), "It was", " good")
    pair = reward_pairs_from_rows(
        [{"prompt": "It was", "chosen": " good", "rejected": "x"}], tokenizer, 50
    )
    assert lengths.rows == [pair[0].chosen_ids]


@catches("a reward model scores a chat without its tools")
def test_a_model_reads_the_tools_of_a_chat_as_its_training_did():
    tokenizer, lengths = character_tokenizer(space_first=True), Lengths()
    tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    )
    row = {"prompt": [{"role": "user", "content": "Rain?"}], "tools": '[{"name": "weather"}]'}
    request = RewardRequest([row["prompt"]], [" No"], [[1]], {"tools": [row["tools"]]})
    ModelReward("judge", lengths, tokenizer, 200).reply(request)
    (pair,) = reward_pairs_from_rows([{**row, "chosen": " No", "rejected": "x"}], tokenizer, 200)
    assert lengths.rows == [pair.chosen_ids]
    assert '"weather"' in tokenizer.decode(pair.chosen_ids)


def test_a_text_beyond_the_models_context_loses_its_beginning_but_not_bos():
    tokenizer, lengths = character_tokenizer(), Lengths()
    answer = answered(ModelReward("judge", lengths, tokenizer, 6), "a" * 50, "end")
    assert tokenizer.decode(lengths.rows[0]) == "<s>aend</s>"
    assert answer.notes == [
        "texts of more than 6 tokens, the model's context, are scored without their beginning"
    ]
    assert not answered(ModelReward("judge", lengths, tokenizer, 6), "a", "end").notes


def test_a_model_with_a_larger_tokenizer_is_refused_by_name(saved_model):
    character_tokenizer().save_pretrained(saved_model)
    with pytest.raises(UserError, match=r"rewards.models = .*judge: the tokenizer's largest id"):
        ModelReward.load(saved_model, trust_remote_code=False, device="cpu")


def test_a_models_infinite_score_is_no_score():
    reward = ModelReward("judge", Lengths(), character_tokenizer(), 50)
    answer = answered(reward, "a", "b", "bc")
    assert answer.scores == [None, 5.0]
    assert answer.messages == ["the model gave inf"]


def test_functions_and_models_add_up(saved_model, tmp_path):
    (tmp_path / "mine.py").write_text("def length(completions): return list(map(len, completions))")
    functions = (f"{tmp_path / 'mine.py'}:length",)
    alone = RewardSettings(models=(saved_model,))
    both = RewardSettings(functions=functions, models=(saved_model,), weights=(2, -1))
    arguments = (["a b", "c"], ["d", "e f"], [[5], [6]], {})
    with Scorer(alone) as one, Scorer(both) as two:
        model = one.score(*arguments).totals
        assert model[0] != model[1]
        assert two.names == ["length", "judge"]
        assert two.score(*arguments).totals == pytest.approx([2 - model[0], 6 - model[1]])


def test_a_score_does_not_depend_on_the_other_texts_of_its_batch(saved_model):
    texts = ["a", "a much longer text than the other", "some"]
    with Scorer(RewardSettings(models=(saved_model,))) as one:
        together = one.score(["x"] * 3, texts, [[1]] * 3, {}).totals
        alone = [one.score(["x"], [text], [[1]], {}).totals[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_model_that_does_not_exist_or_has_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        Scorer(RewardSettings(models=(str(tmp_path / "nowhere"),)))
    tiny_model("reward").save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"rewards.models = .*bare: .* holds no tokenizer.json"):
        Scorer(RewardSettings(models=(str(tmp_path / "bare"),)))


@pytest.mark.parametrize(
    ("path", "name"),
    [("runs/judge/final", "judge"), ("me/judge", "judge"), ("final", "final"), ("/final", "final")],
)
def test_a_model_is_named_after_its_run_where_its_folder_says_nothing(path, name):
    assert model_name(path) == name
