"""Supervised and reward-model objectives, and the loop that learns from them."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from itertools import chain

import pytest
import torch
from torch.nn import functional as F

from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
from lmpg.language.data.reward_pairs import LabelledText, RewardPair
from lmpg.language.data.texts import Text
from lmpg.runtime.processes import SingleProcess
from lmpg.training.offline import OfflineUpdater
from lmpg.training.settings import OfflineSettings
from tests.support.objectives import (
    MADE,
    A,
    B,
    largest_difference,
    learned,
    random_ids,
    random_reward_pairs,
    random_texts,
    reward_model_objective,
    sft_objective,
)
from tests.support.planted import catches
from tests.support.tiny import EOS

TOLERANCE = 1e-5
every_kind = pytest.mark.parametrize("kind", list(MADE))


@catches("the user's turns are learned too")
def test_supervised_loss_is_the_mean_cross_entropy_of_the_learned_tokens():
    texts = random_texts(7)
    objective = sft_objective(texts)
    losses = []
    for text in texts:
        logits = objective.module.model(torch.tensor([text.ids])).logits[0]
        each = F.cross_entropy(logits[:-1], torch.tensor(text.ids[1:]), reduction="none")
        losses += each[torch.tensor(text.loss_mask[1:])].tolist()
    found = objective.evaluate()
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    updater = OfflineUpdater(objective, OfflineSettings(minibatch_size=7), SingleProcess())
    assert updater.update(1)["loss"] == pytest.approx(found["loss"], rel=1e-5)


@catches("perplexity of DFT's loss, which may rise as the model gets better")
def test_dynamic_fine_tuning_is_evaluated_in_nats_per_token():
    texts, dft = random_texts(7), MaximumLikelihood(loss="dft")
    objective = sft_objective(texts, method=dft)
    assert objective.evaluate() == sft_objective(texts).evaluate()
    logprobs = []
    for text in texts:
        logits = objective.module.model(torch.tensor([text.ids])).logits[0]
        each = -F.cross_entropy(logits[:-1], torch.tensor(text.ids[1:]), reduction="none")
        logprobs += each[torch.tensor(text.loss_mask[1:])].tolist()
    expected = -sum(math.exp(x) * x for x in logprobs) / len(logprobs)
    updater = OfflineUpdater(objective, OfflineSettings(minibatch_size=7), SingleProcess())
    assert updater.update(1)["loss"] == pytest.approx(expected, rel=1e-5)


def test_tokens_of_a_prompt_are_read_but_not_learned():
    def loss_of(ids: list[int]) -> float:
        return sft_objective([Text(ids, [False] * 3 + [True] * 2)]).evaluate()["loss"]

    first = loss_of([5, 6, 7, 8, 9])
    assert first != loss_of([10, 11, 12, 8, 9])
    objective = sft_objective([Text([5, 6, 7, 8, 9], [False] * 3 + [True] * 2)])
    logits = objective.module.model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:4]
    assert first == pytest.approx(F.cross_entropy(logits, torch.tensor([8, 9])).item(), rel=1e-5)


def test_pair_accuracy_of_preferences_is_the_share_of_pairs_won():
    pairs = [*random_reward_pairs(9), RewardPair([5, 6], [5, 6])]
    objective = reward_model_objective(pairs)

    def score(ids: list[int]) -> float:
        return objective.module(torch.tensor([ids])).logits.item()

    scores = [(score(pair.chosen_ids), score(pair.rejected_ids)) for pair in pairs]
    expected = sum(a > b for a, b in scores[:-1]) + 0.5
    found = objective.evaluate()
    assert found["pair_accuracy"] == pytest.approx(expected / 10)
    losses = [math.log1p(math.exp(b - a)) for a, b in scores]
    assert found["loss"] == pytest.approx(sum(losses) / 10, rel=1e-4)


@catches(
    "a reward model's margin with the wrong sign",
    "a reward model's scores centred by their difference",
)
def test_a_margin_and_a_term_that_centres_scores_enter_the_loss_of_a_reward_model():
    pairs = [
        RewardPair(x.chosen_ids, x.rejected_ids, i / 2)
        for i, x in enumerate(random_reward_pairs(5))
    ]
    objective = reward_model_objective(pairs, method=BradleyTerry(margin=0.25, centring=0.1))
    losses = []
    for pair in pairs:
        ids = (pair.chosen_ids, pair.rejected_ids)
        a, b = (objective.module(torch.tensor([x])).logits.item() for x in ids)
        losses.append(math.log1p(math.exp(b - a + 0.25 + pair.margin)) + 0.1 * (a + b) ** 2)
    assert objective.evaluate()["loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)
    updater = OfflineUpdater(objective, OfflineSettings(minibatch_size=5), SingleProcess())
    assert updater.update(1)["loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)


def test_pair_accuracy_of_labelled_texts_is_over_every_pair_with_different_labels():
    texts = [LabelledText(ids, float(i % 3)) for i, ids in enumerate(random_ids(12, 1))]
    objective = reward_model_objective(texts)
    scores = [objective.module(torch.tensor([text.ids])).logits.item() for text in texts]
    wins = [
        scores[i] > scores[j]
        for i in range(12)
        for j in range(12)
        if texts[i].label > texts[j].label
    ]
    assert objective.evaluate()["pair_accuracy"] == pytest.approx(sum(wins) / len(wins))


@catches("offline loss averaged per micro-batch", "KTO's KL baseline computed per micro-batch")
@every_kind
def test_microbatches_do_not_change_what_is_learned(kind):
    whole = learned(MADE[kind](), 4, microbatch_size=100)
    for size in (1, 4):
        parts = learned(MADE[kind](), 4, microbatch_size=size)
        assert largest_difference(parts, whole) <= TOLERANCE


class Rank(SingleProcess):
    """One of two ranks; what it would hand to the other is kept instead."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.count = rank, 2
        self.gradients: list[torch.Tensor] = []

    def last_backward(self, parameters):
        return nullcontext()

    def sum_gradients(self, parameters) -> None:
        self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    def sum(self, x):
        return x


def of_rank(kind: str, processes: Rank):
    """The objective of one rank; what it learns of whole minibatches it learns alone here."""
    objective = MADE[kind]()
    objective.processes = processes
    prepare = objective.prepare
    objective.prepare = lambda batch, parts: prepare(batch, [batch])
    return objective


@catches("every process learns from the whole minibatch")
@pytest.mark.parametrize("size", [1, 6])
@every_kind
def test_gradients_of_two_processes_add_up_to_those_of_one(kind, size):
    found = []
    for processes in (Rank(0), Rank(1), Rank(0)):
        if len(found) == 2:
            processes.count = 1
        settings = OfflineSettings(minibatch_size=size, microbatch_size=2, max_grad_norm=1e9)
        OfflineUpdater(of_rank(kind, processes), settings, processes).update(1)
        found.append(torch.cat([gradient.flatten() for gradient in processes.gradients]))
    first, second, whole = found
    torch.testing.assert_close(first + second, whole, atol=1e-6, rtol=1e-4)
    assert whole.norm() > 0.01


@catches("every epoch in the order of the first")
@every_kind
def test_every_example_is_used_once_per_epoch_in_minibatches_of_like_size(kind):
    objective = MADE[kind]()
    updater = OfflineUpdater(
        objective, OfflineSettings(minibatch_size=4, epochs=2), SingleProcess()
    )
    assert updater.total_steps == 6
    epochs = [[updater.minibatch(step) for step in part] for part in ((1, 2, 3), (4, 5, 6))]
    for number, batches in enumerate(epochs):
        assert {len(batch) for batch in batches} == {3, 4}
        assert list(chain(*batches)) == objective.epoch(number)
    first, second = (list(chain(*batches)) for batches in epochs)
    assert first != second
    assert sorted(map(repr, first)) == sorted(map(repr, second))


@catches("optimizer state lost on resume of an offline run")
@every_kind
def test_a_loaded_state_goes_on_bit_for_bit(kind):
    settings = OfflineSettings(minibatch_size=4, epochs=2, warmup_steps=2, schedule="linear")
    straight = OfflineUpdater(MADE[kind](), settings, SingleProcess())
    for step in range(1, 4):
        straight.update(step)
    weights = copy.deepcopy(straight.objective.module.state_dict())
    state = copy.deepcopy(straight.state())
    expected = [straight.update(step) for step in range(4, 7)]
    later = OfflineUpdater(MADE[kind](), settings, SingleProcess())
    later.objective.module.load_state_dict(weights)
    later.load_state(state)
    assert [later.update(step) for step in range(4, 7)] == expected
    for name, x in straight.objective.module.state_dict().items():
        assert torch.equal(x, later.objective.module.state_dict()[name])


@catches("learning rate reaches 0 before the last step")
def test_the_learning_rate_warms_up_and_falls_to_the_last_step():
    settings = OfflineSettings(
        minibatch_size=4, epochs=2, learning_rate=1e-3, warmup_steps=2, schedule="linear"
    )
    updater = OfflineUpdater(sft_objective(random_texts(11)), settings, SingleProcess())
    rates = [updater.update(step)["learning_rate"] for step in range(1, 7)]
    assert rates == pytest.approx([1e-3 * x / 6 for x in (3, 5, 4, 3, 2, 1)])


def test_supervised_training_learns_a_completion_by_heart():
    texts = [Text([A, B, 9, 10, 11, EOS], [False] * 2 + [True] * 4)] * 8
    objective = sft_objective(texts)
    assert objective.evaluate()["loss"] > 1
    learned(objective, 40, learning_rate=1e-2, minibatch_size=8, epochs=40)
    assert objective.evaluate()["loss"] < 0.05


def test_a_reward_model_learns_which_texts_are_better():
    good, poor = random_ids(40, 2), random_ids(40, 3)
    texts = [LabelledText([*ids, A, ids[0], EOS], 1.0) for ids in good]
    texts += [LabelledText([*ids, B, ids[0], EOS], 0.0) for ids in poor]
    train, held_out = texts[:30] + texts[40:70], texts[30:40] + texts[70:]
    objective = reward_model_objective(train, held_out)
    learned(objective, 60, learning_rate=3e-3, minibatch_size=10, epochs=20)
    assert objective.evaluate()["pair_accuracy"] > 0.95
