"""The microscope's figures against enumerated ones: every batch that can be sampled, by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lmpg.functional.advantages import next_in_mask
from lmpg.functional.masking import loss_weights
from lmpg.gym.classic.exact.sampled_episodes import sampled_episodes
from lmpg.gym.classic.exact.unequal_lengths import LONGEST, rollout_of, setting_of_lengths
from lmpg.training.microscope.compared_methods import UNBIASED, compared_methods
from lmpg.training.microscope.estimate_quality import quality
from lmpg.training.microscope.estimates import estimates
from lmpg.training.microscope.gradient_sketch import GradientSketch
from lmpg.types import Evaluation, Minibatch, Rollout
from tests.support.planted import catches

RESPONSES = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])  # token 0 ends a response
LENGTHS = torch.tensor([1, 2, 3, 3])
SCORES = torch.tensor([[1.0, 0.2, 0.5, -1.0], [0.1, 2.0, 1.0, 0.4]])  # by prompt and response
VALUES = torch.tensor([[0.5, -0.3, 0.4], [1.0, 0.2, 0.9]])  # a wrong critic, by prompt and step
GROUP, BATCHES = 3, 400
ROUNDING = 1e-6
FIGURES = ("squared_length", "variance", "squared_bias", "cosine", "single", "noise")


class Table(nn.Module):
    """Logits of two tokens for each prompt and step."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float64))

    def evaluate(self, inputs):
        """The log-probs of the recorded tokens."""
        every = self.logits[inputs["states"]].log_softmax(-1)
        logprobs = every.gather(-1, inputs["tokens"][..., None])[..., 0]
        return Evaluation(logprobs, torch.zeros_like(logprobs))


@pytest.fixture(scope="module")
def policy():
    return Table(
        torch.tensor([[[0.1, 0.4], [0.3, 0.0], [0.2, 0.9]], [[-0.5, 0], [0, 0.6], [1, 0]]]).view(
            6, 2
        )
    )


def rollout(prompt, chosen):
    """A batch: one prompt, three of the four responses."""
    mask = torch.arange(3) < LENGTHS[chosen][:, None]
    last = mask & (torch.arange(3) == LENGTHS[chosen][:, None] - 1)
    values = VALUES[prompt].expand(GROUP, 3)
    return Rollout(
        inputs={
            "states": (prompt * 3 + torch.arange(3)).expand(GROUP, 3),
            "tokens": RESPONSES[chosen],
        },
        mask_BT=mask,
        logprobs_BT=torch.zeros(GROUP, 3),
        rewards_BT=torch.where(last, SCORES[prompt][chosen][:, None], 0.0),
        terminated_BT=last,
        ended_BT=last,
        scorable_B=torch.ones(GROUP, dtype=torch.bool),
        values_BT=values,
        next_values_BT=next_in_mask(values, mask),
    )


def likelihoods(policy):
    """The probability of each response to each prompt, [2, 4]."""
    steps = policy.logits.view(2, 3, 2).softmax(-1)
    of_token = steps[:, torch.arange(3), RESPONSES]  # [2, 4, 3]
    return torch.where(torch.arange(3) < LENGTHS[:, None], of_token, 1).prod(-1)


@pytest.fixture(scope="module")
def every_batch(policy):
    """All batches that there are, with their probabilities."""
    p = likelihoods(policy).detach()
    batches, chances = [], []
    for prompt in range(2):
        for chosen in itertools.product(range(4), repeat=GROUP):
            batches.append(rollout(prompt, torch.tensor(chosen)))
            chances.append(float(p[prompt, list(chosen)].prod() / 2))
    assert sum(chances) == pytest.approx(1)
    return batches, torch.tensor(chances, dtype=torch.float64)


def trained_gradient(policy, method, batch):
    """Uphill of the loss as the training builds it, with the batch as the only minibatch."""
    new = policy.evaluate(batch.inputs)
    old = new.logprobs_BT.detach()
    part = Minibatch.of(Rollout(**{**vars(batch), "logprobs_BT": old}), method.assign_credit(batch))
    new = Evaluation(new.logprobs_BT, new.entropy_BT, batch.values_BT)
    weights = loss_weights(batch.mask_BT, method.reduction, 3)
    loss = (method.loss_terms(new, part)["policy"] * weights).sum()
    return -torch.autograd.grad(loss, policy.logits)[0].reshape(-1)


@pytest.fixture(scope="module")
def methods():
    return compared_methods(GROUP, (0.0, 0.5, 1.0))


@pytest.fixture(scope="module")
def found(policy, every_batch, methods):
    """The microscope's figures over sampled batches, and its estimates."""
    batches, chances = every_batch
    drawn = chances.multinomial(BATCHES, True, generator=torch.Generator().manual_seed(0)).tolist()
    sketch = GradientSketch(policy.parameters(), 1000, 0)
    assert sketch.exact
    return estimates(policy, (batches[i] for i in drawn), methods, sketch, 3)


def exact_figures(gradients, true, chances):
    """The figures from all batches [N, K] with their chances [N]."""
    mean, unit = chances @ gradients, true @ true
    square, own, cross = chances @ gradients.square().sum(1), mean @ mean, mean @ true
    return {
        "squared_length": own / unit,
        "variance": (square - own) / unit,
        "squared_bias": (mean - true).square().sum() / unit,
        "cosine": cross / (own * unit).sqrt(),
        "single": cross / (square * unit).sqrt(),
        "noise": (square - own) / own,
    }


@catches("token_mean and sequence_mean in other units")
def test_all_figures_of_all_estimators_are_within_three_standard_errors_of_enumerated_ones(
    policy, every_batch, methods, found
):
    batches, chances = every_batch
    p = likelihoods(policy)
    (true,) = torch.autograd.grad((p * SCORES).sum() / 2, policy.logits)
    true = true.reshape(-1)
    length = float((p.detach() * LENGTHS).sum() / 2)
    unbiased = found.stacked(UNBIASED, 3)
    wrong = {}
    for name, method in methods.items():
        gradients = torch.stack([trained_gradient(policy, method, batch) for batch in batches])
        gradients = gradients * (3 if method.reduction == "fixed_length" else length)
        exact = exact_figures(gradients, true, chances)
        measured = quality(found.stacked(name, 3), unbiased)
        assert measured.seen
        for figure in FIGURES:
            got = getattr(measured, figure)
            if name == UNBIASED and figure in ("squared_length", "squared_bias", "cosine"):
                continue
            if abs(got.value - float(exact[figure])) > 3 * got.error + ROUNDING:
                wrong[name, figure] = got, float(exact[figure])
    assert wrong == {}


def test_the_unbiased_estimators_find_the_gradient_of_a_markov_decision_process():
    s = setting_of_lengths("every step")
    rows, batches = 20, 60
    random = np.random.default_rng(1)
    table = Table(s.theta_OA)
    values = torch.from_numpy(s.V_S).float()

    def sampled():
        for _ in range(batches):
            e = sampled_episodes(s.mdp, s.pi_SA, rows, LONGEST, random, 4)
            of_steps = values[e.states_NT], values[e.next_states_NT]
            inputs = {"states": torch.from_numpy(s.mdp.seen_S)[e.states_NT], "tokens": e.actions_NT}
            yield replace(
                rollout_of(e),
                inputs=inputs,
                rewards_BT=e.rewards_NT.float(),
                values_BT=of_steps[0] * e.mask_NT,
                next_values_BT=of_steps[1] * e.mask_NT,
            )

    methods = compared_methods(4, (0.0, 0.9, 1.0))
    unbiased = [name for name in methods if name.startswith("PPO, λ")]
    unbiased += ["REINFORCE, no baseline", UNBIASED]
    chosen = {name: methods[name] for name in unbiased}
    sketch = GradientSketch(table.parameters(), 1000, 0)
    found = estimates(table, sampled(), chosen, sketch, LONGEST)
    true = torch.from_numpy(s.truth_OA).reshape(-1)
    for name in unbiased:
        samples = found.stacked(name, LONGEST)
        errors = samples.std(0) / batches**0.5
        assert ((samples.mean(0) - true).abs() < 3 * errors).all(), name
    noise = {
        name: quality(found.stacked(name, LONGEST), found.stacked(UNBIASED, LONGEST)).noise
        for name in unbiased
    }
    assert noise["PPO, λ = 0"].value < noise[UNBIASED].value < noise["REINFORCE, no baseline"].value


@catches("the noise of a mean counted as its length", "a jackknife without its factor N − 1")
def test_few_estimates_give_unbiased_squares_and_honest_errors():
    random = torch.Generator().manual_seed(2)
    count, size = 8, 30
    true = torch.zeros(count, size, dtype=torch.float64)
    true[:, 0] = 1
    lengths, biases = [], []
    for _ in range(400):
        noise = torch.randn(count, size, generator=random, dtype=torch.float64)
        found = quality(2 * true + noise, true)
        lengths.append(found.squared_length)
        biases.append(found.squared_bias)
    for figures, exact in ((lengths, 4), (biases, 1)):
        values, errors = torch.tensor(figures, dtype=torch.float64).unbind(1)
        assert abs(values.mean() - exact) < 3 * values.std() / 20
        assert 0.9 < errors.square().mean().sqrt() / values.std() < 1.5


@catches("a sketch without signs")
def test_inner_products_of_sketches_are_those_of_the_gradients_and_the_error_is_as_said():
    random = torch.Generator().manual_seed(0)
    layers = nn.ModuleList([nn.Linear(40, 50), nn.Linear(50, 30)])
    width, off = 257, []
    sketch = GradientSketch(layers.parameters(), width, 1)
    exact = GradientSketch(layers.parameters(), 10_000, 1)
    assert exact.exact
    assert not sketch.exact
    for _ in range(40):
        pair = []
        common = torch.randn(1, 40, generator=random)
        for _ in range(2):
            x = common + torch.randn(1, 40, generator=random)

            def backward(x=x):
                layers[1](layers[0](x).tanh()).sum().backward()

            pair.append((sketch.of(backward), exact.of(backward)))
        (a, whole_a), (b, whole_b) = pair
        size = float(whole_a.norm() * whole_b.norm())
        off.append(float(a @ b - whole_a @ whole_b) / size)
    off = torch.tensor(off)
    said = (2 / width) ** 0.5
    assert sketch.relative_error == pytest.approx(said, rel=0.5)
    assert exact.relative_error < 1e-12
    assert off.square().mean().sqrt() < 2 * said
    assert all(p.grad is None for p in layers.parameters())
