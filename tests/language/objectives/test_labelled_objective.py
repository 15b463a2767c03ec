"""KTO and BCO, whose losses depend on the minibatch as a whole: against slow loops."""

from __future__ import annotations

import math

import pytest

from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.language.data.texts import Text
from lmpg.runtime.processes import SingleProcess
from lmpg.training.offline import OfflineUpdater
from lmpg.training.settings import OfflineSettings
from tests.support.objectives import (
    dpo_objective,
    kto_objective,
    plain_logprob,
    random_labelled_completions,
    random_preference_pairs,
    sigmoid,
)
from tests.support.planted import catches
from tests.support.tiny import tiny_model


def slow_kto(method: KTO, answers, model, reference) -> tuple[float, float]:
    """(loss, KL baseline) of answers that are one minibatch."""

    def ratio(text: Text) -> float:
        return plain_logprob(model, text)[0] - plain_logprob(reference, text)[0]

    baseline = max(0.0, sum(ratio(answer.mismatched) for answer in answers) / len(answers))
    losses = []
    for answer in answers:
        gain = method.beta * (ratio(answer.text) - baseline)
        weight = method.desirable_weight if answer.desirable else method.undesirable_weight
        losses.append(weight * (1 - sigmoid(gain if answer.desirable else -gain)))
    return sum(losses) / len(losses), baseline


@catches("KTO's KL baseline kept below 0", "KTO's KL baseline from the completions' own prompts")
@pytest.mark.parametrize("seed", [0, 7])  # of 7 the baseline is above 0
def test_the_loss_of_kto_is_its_formula_with_one_drift_for_the_whole_minibatch(seed):
    method = KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.8)
    answers = random_labelled_completions(9, seed)
    objective = kto_objective(answers, method=method)
    loss, baseline = slow_kto(method, answers, objective.module.model, tiny_model())
    assert (baseline > 0) == (seed == 7)
    assert objective.evaluate()["loss"] == pytest.approx(loss, rel=1e-4)
    settings = OfflineSettings(minibatch_size=9, microbatch_size=2)
    metrics = OfflineUpdater(objective, settings, SingleProcess()).update(1)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["drift"] == pytest.approx(baseline, rel=1e-3, abs=1e-5)


def test_figures_of_kto_are_means_over_each_kind_of_answer():
    answers = random_labelled_completions(9)
    objective = kto_objective(answers)
    reference, model = tiny_model(), objective.module.model
    rewards = [
        0.1 * (plain_logprob(model, x.text)[0] - plain_logprob(reference, x.text)[0])
        for x in answers
    ]
    good = [r for r, x in zip(rewards, answers) if x.desirable]
    poor = [r for r, x in zip(rewards, answers) if not x.desirable]
    found = objective.evaluate()
    margin = sum(good) / len(good) - sum(poor) / len(poor)
    assert found["margin"] == pytest.approx(margin, rel=1e-3, abs=1e-5)
    pairs = [a > b for a in good for b in poor]
    assert found["pair_accuracy"] == pytest.approx(sum(pairs) / len(pairs))
    metrics = OfflineUpdater(objective, OfflineSettings(minibatch_size=9), SingleProcess()).update(
        1
    )
    assert metrics["rewards/chosen"] == pytest.approx(sum(good) / len(good), rel=1e-3, abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(sum(poor) / len(poor), rel=1e-3, abs=1e-5)


@catches("BCO's δ of the last minibatch alone", "BCO without its δ")
@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_bco_measures_from_the_mean_reward_of_all_answers_so_far(kind):
    if kind == "pairs":
        objective = dpo_objective(random_preference_pairs(9), method=DPO(loss="bco_pair", beta=0.5))
    else:
        answers = random_labelled_completions(9)
        objective = kto_objective(answers, method=KTO(loss="bco", beta=0.5))
    settings = OfflineSettings(minibatch_size=5, microbatch_size=2, learning_rate=1e-2)
    updater = OfflineUpdater(objective, settings, SingleProcess())
    reference, rewards = tiny_model(), []
    for step in (1, 2):
        for example in updater.minibatch(step):
            texts = example.texts if kind == "pairs" else [example.text]
            for text in texts:
                ratio = plain_logprob(objective.module.model, text)[0]
                rewards.append(0.5 * (ratio - plain_logprob(reference, text)[0]))
        found = updater.update(step)["rewards/mean"]
        assert found == pytest.approx(sum(rewards) / len(rewards), abs=1e-5)
    assert abs(found) > 1e-3
    before = objective.mean_reward
    objective.evaluate()
    assert objective.mean_reward == before != 0


@catches("BCO's mean reward of this process alone")
@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_the_mean_reward_of_bco_is_that_of_all_processes(kind):
    means, handed_over = [], []
    for parts in ([0, 1], [2], [0, 1, 2]):  # of rank 0, of rank 1, of one process alone
        if kind == "pairs":
            objective = dpo_objective(random_preference_pairs(7), method=DPO(loss="bco_pair"))
        else:
            objective = kto_objective(random_labelled_completions(7), method=KTO(loss="bco"))
        cut = [objective.train[:2], objective.train[2:5], objective.train[5:]]
        objective.processes.sum = lambda x: handed_over.append(x) or sum(handed_over)
        if len(parts) == 3:
            handed_over.clear()
        objective.prepare(objective.train, [cut[i] for i in parts])
        means.append(objective.mean_reward)
    assert means[1] == pytest.approx(means[2], abs=1e-7)
    assert abs(means[0] - means[2]) > 1e-5


def test_an_unpaired_bco_loss_is_that_of_a_classifier():
    method = KTO(loss="bco", beta=0.5, desirable_weight=2.0)
    objective = kto_objective(random_labelled_completions(9), method=method)
    losses, reference, rewards = [], tiny_model(), []
    for answer in objective.train:
        models = (objective.module.model, reference)
        ratio, known = (plain_logprob(model, answer.text)[0] for model in models)
        rewards.append(0.5 * (ratio - known))
    shift = sum(rewards) / 9
    for answer, reward in zip(objective.train, rewards):
        right = sigmoid(reward - shift if answer.desirable else shift - reward)
        losses.append(-math.log(right) * (2 if answer.desirable else 1))
    updater = OfflineUpdater(objective, OfflineSettings(minibatch_size=9), SingleProcess())
    assert updater.update(1)["loss"] == pytest.approx(sum(losses) / 9, rel=1e-4)
