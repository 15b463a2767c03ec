"""DPO, its variants and KTO: against slow loops over the model's own logits, one row at a time."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.language.data.policy_pairs import PreferencePair
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.texts import Text
from lmpg.language.models.lora import with_adapter
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.objectives.dpo_objective import DPOObjective
from lmpg.language.objectives.kto_objective import KTOObjective
from lmpg.language.stages.preference import dpo
from lmpg.language.stages.settings import DpoSettings
from lmpg.runtime.processes import SingleProcess
from lmpg.training.offline import OfflineUpdater
from lmpg.training.settings import OfflineSettings
from tests.support.objectives import (
    answered,
    dpo_objective,
    kto_objective,
    moved,
    plain_logprob,
    random_ids,
    random_labelled_completions,
    random_preference_pairs,
    random_reward_pairs,
    random_texts,
    reward_model_objective,
    sft_objective,
    sigmoid,
    tiny_policy,
)
from tests.support.planted import catches
from tests.support.tiny import save_tiny, tiny_model


def slow_loss(
    method: DPO, chosen: float, rejected: float, means: list[float], shift: float
) -> float:
    """The published formulas; arguments are Δ of both answers, per token where that is asked, their
    mean log-probs, and BCO's δ."""
    beta, eps = method.beta, method.label_smoothing
    z, r_chosen, r_rejected = (
        beta * (chosen - rejected) - method.gamma,
        beta * chosen,
        beta * rejected,
    )
    right, wrong = -math.log(sigmoid(z)), -math.log(sigmoid(-z))
    odds = [math.exp(x) / (1 - math.exp(x)) for x in means]
    each = {
        "sigmoid": right,
        "hinge": max(0.0, 1 - z),
        "ipo": (chosen - rejected - 1 / (2 * beta)) ** 2,
        "conservative": (1 - eps) * right + eps * wrong,
        "robust": ((1 - eps) * right - eps * wrong) / (1 - 2 * eps),
        "apo_zero": 1 - sigmoid(r_chosen) + sigmoid(r_rejected),
        "apo_down": sigmoid(r_chosen) + 1 - sigmoid(r_chosen - r_rejected),
        "bco_pair": -math.log(sigmoid(r_chosen - shift)) - math.log(sigmoid(shift - r_rejected)),
        "sppo_hard": (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2,
        "nca_pair": -math.log(sigmoid(r_chosen))
        - (math.log(sigmoid(-r_chosen)) + math.log(sigmoid(-r_rejected))) / 2,
        "odds_ratio": -math.log(sigmoid(math.log(odds[0] / odds[1]))),
        "sft": -means[0],
    }
    weights = method.loss_weights or [1.0] * len(method.loss)
    return sum(weight * each[name] for name, weight in zip(method.loss, weights))


VARIANTS = [
    DPO(),
    DPO(loss="ipo", beta=0.4),
    DPO(loss="hinge", beta=0.5),
    DPO(loss="conservative", label_smoothing=0.2, beta=0.5),
    DPO(loss="robust", label_smoothing=0.2, beta=0.5),
    DPO(per_token=True, beta=2.0),
    DPO(per_token=True, reference=False, beta=2.0, gamma=0.7),
    DPO(loss="apo_zero", beta=0.5),
    DPO(loss="apo_down", beta=0.5),
    DPO(loss="bco_pair", beta=0.5),
    DPO(loss="sppo_hard", beta=0.4),
    DPO(loss="nca_pair", beta=0.5),
    DPO(loss=("odds_ratio", "sft"), loss_weights=(0.3, 1.0), per_token=True, reference=False),
    DPO(loss=("sigmoid", "sft"), reference=False),
    DPO(loss=("sigmoid", "sft"), loss_weights=(1.0, 0.5)),
    DPO(loss=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0), beta=0.5),
]


@catches(
    "IPO with sums instead of means",
    "conservative and robust DPO mixed up",
    "DPO's reference taken after training began",
    "SimPO's margin with the wrong sign",
    "APO-zero and APO-down mixed up",
    "SPPO's targets of ±1/β instead of ±1/(2β)",
    "NCA's noise term without the chosen answer",
    "ORPO's odds of whole answers instead of means per token",
    "the weights of a sum of losses in another order",
    "the NLL of both answers, or its sum over tokens",
)
@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_every_loss_is_its_formula_over_the_answers_tokens(method):
    pairs = random_preference_pairs(7)
    objective = dpo_objective(pairs, method=method)
    reference, deltas, means, rewards = tiny_model(), [], [], []
    for pair in pairs:
        ratios, per_token = [], []
        for text in (pair.chosen, pair.rejected):
            logprob, count = plain_logprob(objective.module.model, text)
            known = plain_logprob(reference, text)[0] if method.reference else 0.0
            divided = method.per_token or method.loss == ("ipo",)
            ratios.append((logprob - known) / (count if divided else 1))
            per_token.append(logprob / count)
        deltas.append(ratios)
        means.append(per_token)
        rewards.append([method.beta * x for x in ratios])

    def mean_loss(shift: float) -> float:
        return sum(slow_loss(method, *x, m, shift) for x, m in zip(deltas, means)) / 7

    found = objective.evaluate()
    assert found["loss"] == pytest.approx(mean_loss(0.0), rel=1e-4)
    assert found["margin"] == pytest.approx(sum(a - b for a, b in rewards) / 7, rel=1e-4, abs=1e-5)
    assert found["pair_accuracy"] == pytest.approx(sum(a > b for a, b in rewards) / 7)
    updater = OfflineUpdater(objective, OfflineSettings(minibatch_size=7), SingleProcess())
    metrics = updater.update(1)
    assert metrics["loss"] == pytest.approx(mean_loss(sum(map(sum, rewards)) / 14), rel=1e-4)
    assert metrics["rewards/chosen"] == pytest.approx(sum(a for a, _ in rewards) / 7, rel=1e-3)
    if "sft" in method.loss:
        assert metrics["loss/sft"] == pytest.approx(-sum(a for a, _ in means) / 7, rel=1e-4)


@catches("prompt tokens in an answer's log-prob")
def test_tokens_of_the_prompt_are_not_in_an_answers_log_prob():
    prompt, good, poor = random_ids(3, 5)
    pair = PreferencePair(answered(prompt, good), answered(prompt, poor))
    whole = PreferencePair(
        *(Text(x.ids, [False, *[True] * (len(x.ids) - 1)]) for x in (pair.chosen, pair.rejected))
    )
    free = DPO(per_token=True, reference=False)
    assert (
        dpo_objective([pair], method=free).evaluate()
        != dpo_objective([whole], method=free).evaluate()
    )
    logprob, count = plain_logprob(dpo_objective([pair]).module.model, pair.chosen)
    assert count == len(good)
    metrics = OfflineUpdater(dpo_objective([pair]), OfflineSettings(), SingleProcess()).update(1)
    assert metrics["logps/chosen"] == pytest.approx(logprob, rel=1e-4)


def test_training_starts_with_no_margin_and_the_loss_of_chance():
    policy = tiny_policy()
    found = dpo_objective(random_preference_pairs(6), policy=policy).evaluate()
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["margin"] == pytest.approx(0, abs=1e-6)


def test_in_bf16_losses_and_gradients_are_near_those_of_fp32():
    found = []
    for bf16 in (False, True):
        objective = moved(dpo_objective(random_preference_pairs(8), policy=tiny_policy(bf16=bf16)))
        loss = objective.loss_sums(objective.train)["loss"]
        loss.backward()
        grads = [p.grad.flatten() for p in objective.module.parameters()]
        assert loss.dtype == grads[0].dtype == torch.float32
        found.append((loss.item(), torch.cat(grads)))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.02)
    assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.99


@catches("DPO's reference without an adapter that was trained before")
@pytest.mark.parametrize("trained", [False, True])
def test_the_reference_is_the_policy_as_it_starts_whatever_its_adapter_learns(trained):
    torch.manual_seed(0)
    policy = tiny_policy(with_adapter(tiny_model(), LoraSettings(rank=4)))
    factors = [p for name, p in policy.named_parameters() if "lora_B" in name]
    if trained:
        for p in factors:
            torch.nn.init.normal_(p, std=0.5)
    objective = dpo_objective(random_preference_pairs(4), policy=policy)
    start = policy.causal_lm if trained else tiny_model()
    for pair in objective.train:
        expected = [plain_logprob(start, x)[0] for x in (pair.chosen, pair.rejected)]
        assert pair.ref_logprobs == pytest.approx(expected, rel=1e-4)
    for p in factors:
        torch.nn.init.normal_(p, std=0.5)
    assert abs(objective.evaluate()["margin"]) > 1e-3


@pytest.mark.parametrize("kind", ["sft", "reward_model", "dpo", "kto"])
def test_to_make_an_objective_runs_no_model(kind, monkeypatch):
    policy, pairs = tiny_policy(), random_preference_pairs(3)
    completions, texts = random_labelled_completions(3), random_texts(3)
    scores = tiny_model("reward")

    def never(*args, **options):
        raise AssertionError

    monkeypatch.setattr(torch.nn.Module, "__call__", never)
    {
        "sft": lambda: sft_objective(texts, policy=policy, packing=True),
        "reward_model": lambda: reward_model_objective(random_reward_pairs(3), model=scores),
        "dpo": lambda: DPOObjective(policy, DPO(), (pairs, pairs), 0, SingleProcess()),
        "kto": lambda: KTOObjective(policy, KTO(), (completions, completions), 0, SingleProcess()),
    }[kind]()


def test_without_a_reference_none_is_computed(monkeypatch, tmp_path):
    rows = [{"prompt": f"{i}", "chosen": "good", "rejected": "bad"} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []

    def with_reference(examples, *parts):
        asked.append(len(examples))
        return examples

    monkeypatch.setattr("lmpg.language.stages.preference.with_reference", with_reference)
    orpo = DPO(loss=("odds_ratio", "sft"), reference=False)
    for method in (DPO(), DPO(reference=False, per_token=True, beta=2.0), orpo):
        settings = DpoSettings(
            model=ModelSettings(path=save_tiny(tmp_path / "model")),
            data=DataSettings(path=str(tmp_path / "rows.jsonl")),
            algorithm=method,
        )
        dpo(settings, None, SingleProcess())
        assert asked == [8, 2]


@catches("DPO: a reference of one's own asked for, the first policy taken")
@pytest.mark.parametrize("rank", [0, 4])
def test_a_reference_of_ones_own_is_what_answers_are_compared_with(rank, tmp_path):
    rows = [{"prompt": f"{i}", "chosen": "good", "rejected": "bad"} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", seed=7)

    def known(**model):
        data = DataSettings(path=str(tmp_path / "rows.jsonl"))
        settings = DpoSettings(model=ModelSettings(**model), data=data)
        found = dpo(settings, None, SingleProcess()).objective
        return [pair.ref_logprobs for pair in found.train]

    expected = known(path=other)
    found = known(path=mine, reference=other, lora={"rank": rank})
    assert found == expected
    assert known(path=mine) != expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"loss": "robust"},
            "algorithm.label_smoothing = 0.0 has no effect with algorithm.loss = robust",
        ),
        ({"label_smoothing": 0.1}, "has no effect with algorithm.loss = sigmoid"),
        ({"loss": "ipo", "gamma": 1.0}, "ipo has its margin in algorithm.beta"),
        ({"loss": "nca_pair", "gamma": 1.0}, "gamma = 1.0 has no effect with .* = nca_pair"),
        (
            {"loss": ("odds_ratio", "sft"), "reference": False, "beta": 0.5},
            "algorithm.beta = 0.5 has no effect with .* odds_ratio, sft: .*loss_weights",
        ),
        ({"loss": ("odds_ratio", "sft")}, "reference = True has no effect with .* odds_ratio, sft"),
        ({"loss": ("sigmoid", "sigmoid")}, "one stands there twice"),
        ({"loss_weights": (1.0, 2.0)}, "1.0, 2.0: 2 for the 1 of algorithm.loss = sigmoid"),
        ({"loss_weights": (0.0,)}, "expected numbers above 0"),
        ({"loss_weights": (math.nan,)}, "finite number"),
        ({"loss": ()}, "algorithm.loss is empty"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DPO(**values)


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_judged_answers_are_learned(kind):
    answers = random_labelled_completions(12) if kind == "kto" else random_preference_pairs(12)
    objective = (kto_objective if kind == "kto" else dpo_objective)(answers)
    settings = OfflineSettings(learning_rate=3e-3, minibatch_size=12, epochs=15)
    updater: OfflineUpdater = OfflineUpdater(objective, settings, SingleProcess())
    for step in range(1, 16):
        updater.update(step)
    assert objective.evaluate()["pair_accuracy"] == 1.0
