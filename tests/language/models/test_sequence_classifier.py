"""Reward models: read at the last real token, whatever the batch and its padding."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2ForSequenceClassification

from lmpg.language.models.loading import load_sequence_classifier
from lmpg.language.models.sequence_classifier import SequenceScorer, sequence_scores
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

ROWS = [[5, 6, 7], [9], list(range(10, 30)), [11, EOS, PAD], [5, 6, PAD, 7]]


def gpt2_classifier(**changes):
    config = tiny_model("gpt2").config
    config.num_labels = 1
    config.update(changes)
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(config).eval()


def bert(pad_token_id=PAD):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=1,
        pad_token_id=pad_token_id,
        initializer_range=0.15,
    )
    return BertForSequenceClassification(config).eval()


def one_at_a_time(model):
    """The oracle: each row alone, without padding, its last logit."""
    trunk = model.base_model
    with torch.no_grad():
        return torch.stack(
            [model.score(trunk(torch.tensor([ids])).last_hidden_state[0, -1])[0] for ids in ROWS]
        )


@catches("a reward model's score read at the first column")
@pytest.mark.parametrize("make", [lambda: tiny_model("reward"), gpt2_classifier])
def test_a_batch_scores_each_row_at_its_last_real_token(make):
    model = make()
    scores = sequence_scores(model, ROWS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, one_at_a_time(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [None, EOS, 7])
def test_the_score_does_not_search_for_the_pad_token(pad):
    model = tiny_model("reward")
    expected = sequence_scores(model, ROWS)
    model.config.pad_token_id = pad
    assert torch.equal(sequence_scores(model, ROWS), expected)


def test_scores_have_gradients_that_do_not_depend_on_the_batch():
    together, apart = tiny_model("reward"), tiny_model("reward")
    sequence_scores(together, ROWS).square().sum().backward()
    for ids in ROWS:
        sequence_scores(apart, [ids]).square().sum().backward()
    for one, other in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@catches("scores returned in the order of the texts' lengths")
@pytest.mark.parametrize("tokens_per_batch", [1, 25, 10_000])
def test_the_scorer_returns_scores_in_order_for_any_micro_batch(tokens_per_batch):
    model = tiny_model("reward")
    scorer = SequenceScorer(model, tiny_tokenizer(), tokens_per_batch)
    torch.testing.assert_close(
        torch.tensor(scorer.score(ROWS)), one_at_a_time(model), rtol=1e-5, atol=1e-5
    )
    assert scorer.score([]) == []


def test_texts_are_tokenized():
    scorer = SequenceScorer(tiny_model("reward"), tiny_tokenizer())
    ids = [tiny_tokenizer()(text)["input_ids"] for text in ("hello", "a b c")]
    assert scorer.score(["hello", "a b c"]) == scorer.score(ids)


def test_a_sequence_beyond_the_context_keeps_its_end_and_says_so_once(caplog):
    scorer = SequenceScorer(tiny_model("reward"), tiny_tokenizer())
    long = [3 + i % 40 for i in range(CONTEXT + 30)]
    assert scorer.score([long, long]) == scorer.score([long[-CONTEXT:]] * 2)
    assert len(caplog.records) == 1
    assert "94 tokens" in caplog.text


def test_an_empty_sequence_has_no_score():
    with pytest.raises(ValueError, match="without tokens"):
        sequence_scores(tiny_model("reward"), [[5], []])


def test_another_head_scores_through_the_models_own_forward():
    model = bert()
    rows = [[5, 6, 7], [9], list(range(10, 30))]
    alone = torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in rows])
    torch.testing.assert_close(sequence_scores(model, rows), alone, rtol=1e-5, atol=1e-5)


def test_another_head_needs_a_pad_token():
    with pytest.raises(UserError, match="no pad_token_id"):
        sequence_scores(bert(pad_token_id=None), [[5, 6], [7]])


def test_a_saved_reward_model_scores_the_same(tmp_path):
    model = tiny_model("reward")
    model.save_pretrained(tmp_path)
    loaded = load_sequence_classifier(str(tmp_path))
    assert not loaded.training
    assert torch.equal(sequence_scores(loaded, ROWS), sequence_scores(model, ROWS))


def test_a_causal_lm_is_no_reward_model_until_it_gets_a_new_head(tmp_path):
    path = save_tiny(tmp_path)
    with pytest.raises(UserError, match=r"has no trained score.weight"):
        load_sequence_classifier(path)
    torch.manual_seed(3)
    one = load_sequence_classifier(path, new_head=True)
    torch.manual_seed(3)
    same = load_sequence_classifier(path, new_head=True)
    assert one.config.num_labels == 1
    assert torch.equal(one.score.weight, same.score.weight)
    assert torch.equal(one.model.embed_tokens.weight, tiny_model().model.embed_tokens.weight)


def test_more_than_one_label_is_refused(tmp_path):
    tiny_model("reward", num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 2 labels, expected a sequence classifier with one"):
        load_sequence_classifier(str(tmp_path))


def test_a_missing_reward_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_sequence_classifier(str(tmp_path / "nowhere"))
