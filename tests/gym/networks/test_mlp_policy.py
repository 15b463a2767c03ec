"""Small policies: what they sample is what they evaluate, and what is saved comes back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lmpg.gym.networks.distributions import Categorical, DiagonalGaussian
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy, load_mlp_policy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runtime.seeding import generator
from lmpg.settings.section import UserError
from tests.support.planted import catches

DISCRETE, CONTINUOUS = ActionSpec("discrete", 3), ActionSpec("continuous", 2)
JOINT = ActionSpec("multi-discrete", 2, (3, 2))


def made(actions: ActionSpec, critic: bool = True, **settings) -> MLPPolicy:
    policy = MLPPolicy(4, actions, PolicySettings(**settings), critic)
    policy.initialise(generator("policy"))
    return policy


def test_gaussian_entropy_is_that_of_g18():
    gaussian = DiagonalGaussian(2, math.log(0.2))
    _, entropy = gaussian.logprobs_and_entropy(torch.zeros(1, 2), torch.zeros(1, 2))
    assert entropy.item() == pytest.approx(-0.380999, abs=1e-6)


@catches("Gaussian log-prob without −log σ")
def test_gaussian_logprobs_are_torchs_own():
    gaussian = DiagonalGaussian(2, -0.3)
    mean, actions = torch.randn(2, 5, 2, generator=generator(0)), torch.ones(2, 5, 2)
    oracle = torch.distributions.Normal(mean, gaussian.log_std.exp())
    logprobs, entropy = gaussian.logprobs_and_entropy(mean, actions)
    torch.testing.assert_close(logprobs, oracle.log_prob(actions).sum(-1))
    torch.testing.assert_close(entropy, oracle.entropy().sum(-1))


def test_categorical_logprobs_are_torchs_own():
    logits = torch.randn(7, 3, generator=generator(0))
    actions = torch.arange(7) % 3
    oracle = torch.distributions.Categorical(logits=logits)
    logprobs, entropy = Categorical(3).logprobs_and_entropy(logits, actions)
    torch.testing.assert_close(logprobs, oracle.log_prob(actions))
    torch.testing.assert_close(entropy, oracle.entropy())


@catches("cumulative distribution off by one")
def test_categorical_samples_have_the_softmax_frequencies():
    logits = np.log(np.array([[0.5, 0.3, 0.2]], dtype=np.float32))
    uniforms = (np.arange(10_000, dtype=np.float32) + 0.5) / 10_000
    drawn = Categorical(3).sample(np.repeat(logits, 10_000, 0), uniforms)
    assert np.bincount(drawn, minlength=3).tolist() == pytest.approx([5000, 3000, 2000], abs=2)


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_categorical_never_leaves_its_actions(uniform):
    logits = np.array([[0, -200, 3], [-200, 0, -200]], dtype=np.float32)
    drawn = Categorical(3).sample(logits, np.full(2, uniform, dtype=np.float32))
    assert drawn[1] == 1
    assert drawn[0] in (0, 2)


def test_gaussian_samples_have_its_mean_and_deviation():
    gaussian = DiagonalGaussian(1, math.log(0.5))
    noise = gaussian.noise(20_000, 1, generator(0))[:, 0]
    drawn = gaussian.sample(np.full((20_000, 1), 2.0, dtype=np.float32), noise)
    assert drawn.dtype == np.float32
    assert drawn.mean() == pytest.approx(2, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 8)])
def test_acting_in_numpy_reads_the_same_network_as_learning_in_torch(activation, hidden):
    policy = made(CONTINUOUS, activation=activation, hidden_sizes=hidden)
    features = torch.randn(6, 4, generator=generator(0))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, fused=True)
    policy.actor(features).sum().backward()
    optimizer.step()  # what acts must be the weights as they are now
    expected = policy.actor(features).detach().numpy()
    np.testing.assert_allclose(policy.act(features.numpy(), None), expected, rtol=1e-5, atol=1e-6)


def test_a_fresh_policy_is_nearly_uniform_and_its_seed_decides_it():
    features = torch.randn(50, 1, 4, generator=generator(0))
    actions = torch.zeros(50, 1, dtype=torch.int64)
    policy = made(DISCRETE)
    new = policy.evaluate({"observations": features, "actions": actions})
    assert new.entropy_BT.min() > math.log(3) - 1e-3  # G19
    weights = made(DISCRETE).trainable_state()
    assert all(torch.equal(x, weights[name]) for name, x in policy.trainable_state().items())


def test_without_a_critic_there_are_no_values():
    inputs = {"observations": torch.zeros(2, 3, 4), "actions": torch.zeros(2, 3, 2)}
    assert made(CONTINUOUS, critic=False).evaluate(inputs).values_BT is None
    assert made(CONTINUOUS).evaluate(inputs).values_BT.shape == (2, 3)


@pytest.mark.parametrize(
    ("actions", "settings"),
    [
        (DISCRETE, {}),
        (CONTINUOUS, {}),
        (JOINT, {}),
        (DISCRETE, {"trunk": "shared"}),
        (CONTINUOUS, {"squash": True}),
        (CONTINUOUS, {"log_std": "fixed", "initial_log_std": -1.5}),
    ],
)
def test_a_saved_policy_comes_back(actions, settings, tmp_path):
    policy = made(actions, hidden_sizes=(8,), activation="relu", **settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
    policy.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json"}
    features = np.ones((2, 4), dtype=np.float32)
    loaded, noise = load_mlp_policy(tmp_path), policy.noise(1, 2, generator(0))[0]
    assert np.array_equal(loaded.act(features, None), policy.act(features, None))
    assert np.array_equal(loaded.act(features, noise), policy.act(features, noise))
    assert torch.equal(loaded.values(torch.ones(2, 4)), policy.values(torch.ones(2, 4)))
    assert loaded.squash == policy.squash


def test_a_policy_saved_before_there_were_joint_choices_is_still_read(tmp_path):
    policy = made(DISCRETE)
    policy.save(tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    del described["actions"]["choices"], described["policy"]["trunk"]
    (tmp_path / "policy.json").write_text(json.dumps(described))
    assert load_mlp_policy(tmp_path).action_spec == DISCRETE


def test_loading_what_is_no_policy_names_the_folder(tmp_path):
    with pytest.raises(UserError, match=r"policy\.json"):
        load_mlp_policy(tmp_path)


def slope_in_the_actor(term: torch.Tensor, policy: MLPPolicy) -> torch.Tensor | None:
    first = next(iter(policy.actor.parameters()))
    return torch.autograd.grad(term, first, retain_graph=True, allow_unused=True)[0]


@catches("the critic does not train the trunk it shares")
def test_a_shared_trunk_is_trained_by_actor_and_critic():
    features = torch.randn(6, 4, generator=generator(0))
    inputs = {"observations": features, "actions": torch.zeros(6, dtype=torch.int64)}
    policy = made(DISCRETE, hidden_sizes=(8, 8), trunk="shared")
    new = policy.evaluate(inputs)
    torch.testing.assert_close(new.values_BT, policy.values(features))
    for term in (new.values_BT.sum(), new.logprobs_BT.sum()):
        assert slope_in_the_actor(term, policy).abs().sum() > 0
    assert sum(p.numel() for p in policy.critic.parameters()) == 9
    apart = made(DISCRETE, hidden_sizes=(8, 8))
    assert slope_in_the_actor(apart.evaluate(inputs).values_BT.sum(), apart) is None


def test_a_shared_trunk_acts_as_it_evaluates():
    policy = made(DISCRETE, hidden_sizes=(8,), trunk="shared")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += torch.randn(parameter.shape, generator=generator(1))
    features = torch.randn(20, 4, generator=generator(0))
    acted = torch.from_numpy(policy.act(features.numpy(), None))
    outcomes = [
        policy.evaluate({"observations": features, "actions": torch.full((20,), a)}).logprobs_BT
        for a in range(3)
    ]
    assert torch.equal(acted, torch.stack(outcomes).argmax(0))
    assert len(acted.unique()) > 1


def test_a_trunk_without_a_critic_to_share_it_is_refused():
    with pytest.raises(UserError, match=r"policy\.trunk = shared, but the algorithm has no critic"):
        made(DISCRETE, critic=False, trunk="shared")
