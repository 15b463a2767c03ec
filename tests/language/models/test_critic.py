"""Critics with weights of their own: a copy of the policy's trunk, or what a reward model knows."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel

from lmpg.algorithms.ppo import PPO
from lmpg.language.data.prompts import prompts_from_rows
from lmpg.language.models.critic import SeparateCritic, load_value_head
from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.loading import load_policy, load_tokenizer
from lmpg.language.models.sequence_classifier import sequence_scores
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.preflight import self_test
from lmpg.language.sampling.sampler import Sampler
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from lmpg.training.optimizer import policy_optimizer
from lmpg.training.settings import UpdateSettings
from tests.support.planted import catches
from tests.support.tiny import EOS, PAD, save_tiny, tiny_tokenizer

PROMPTS = [[5, 9, 12], [7, 3, 4, 4, 8], [11]]
RESPONSES = [[6, 6, EOS], [9], [10, 31, 8, 7, EOS]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(policy's, reward model's) folder."""
    folder = tmp_path_factory.mktemp("models")
    return save_tiny(folder / "model"), save_tiny(folder / "reward", "reward", seed=1)


def loaded(folders, critic, path=None, **settings):
    model = ModelSettings(path=str(path or folders[0]), critic=critic, **settings)
    tokenizer = load_tokenizer(str(folders[0]))
    return load_policy(model, tokenizer, critic=True, temperature=1.0, reward_model=folders[1])


def stirred(policy):
    """The policy with a critic that says something."""
    torch.nn.init.normal_(policy.critic.head.weight, generator=torch.Generator().manual_seed(0))
    return policy


def inputs():
    return language_inputs(PROMPTS, RESPONSES, PAD)


@catches("a separate critic shares the policy's trunk")
def test_a_separate_critic_starts_as_a_copy_of_the_trunk_that_says_zero(folders):
    policy = loaded(folders, "separate")
    assert policy.value_head is None
    mine, its = policy.trunk.state_dict(), policy.critic.trunk.state_dict()
    assert mine.keys() == its.keys()
    for name, x in mine.items():
        assert torch.equal(its[name], x)
        assert its[name].data_ptr() != x.data_ptr()
    assert (policy.evaluate(inputs()).values_BT == 0).all()


def test_its_values_are_those_of_a_plain_forward_before_each_token(folders):
    policy = stirred(loaded(folders, "separate"))
    with torch.no_grad():
        values_BT = policy.evaluate(inputs()).values_BT
        for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
            ids = torch.tensor([prompt + response])
            hidden = policy.critic.trunk(input_ids=ids).last_hidden_state[0]
            expected = policy.critic.head(hidden)[len(prompt) - 1 : -1, 0]
            torch.testing.assert_close(
                values_BT[b, : len(response)], expected, atol=1e-5, rtol=1e-5
            )
            assert (values_BT[b, len(response) :] == 0).all()
        assert torch.equal(policy.state_values(inputs()), values_BT)


def test_the_policy_learns_nothing_from_the_value_loss_and_the_critic_nothing_from_the_policys(
    folders,
):
    policy = stirred(loaded(folders, "separate"))
    new = policy.evaluate(inputs())
    new.values_BT.sum().backward()
    assert all(p.grad is None for p in policy.model.parameters())
    assert all(p.grad is not None for p in policy.critic.parameters())
    policy.zero_grad(set_to_none=True)
    policy.evaluate(inputs()).logprobs_BT.sum().backward()
    assert all(p.grad is None for p in policy.critic.parameters())


@catches("the reward model's score layer not taken over")
def test_a_critic_from_a_reward_model_values_a_text_at_first_as_that_scores_it(folders):
    policy = loaded(folders, "reward_model")
    texts = [p + r for p, r in zip(PROMPTS, RESPONSES)]
    whole = language_inputs([t[:-1] for t in texts], [[EOS]] * 3, PAD)
    with torch.no_grad():
        values_BT = policy.state_values(whole)
        from lmpg.language.models.loading import load_sequence_classifier

        scores = sequence_scores(load_sequence_classifier(folders[1]), [t[:-1] for t in texts])
    torch.testing.assert_close(values_BT[:, 0], scores, atol=1e-5, rtol=1e-5)
    assert scores.abs().max() > 0.01


def test_a_reward_model_with_another_vocabulary_is_refused(folders, tmp_path):
    path = save_tiny(tmp_path / "other", "reward")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(path)
    with pytest.raises(
        UserError, match=r"rewards\.models = .*other: its tokenizer differs .* in 1 tokens"
    ):
        loaded((folders[0], path), "reward_model")
    with pytest.raises(UserError, match=r"no rewards\.models to start from"):
        loaded((folders[0], None), "reward_model")


def test_a_reward_model_with_a_shorter_context_bounds_that_of_the_policy(folders, tmp_path):
    path = save_tiny(tmp_path / "short", "reward", max_position_embeddings=40)
    assert loaded((folders[0], path), "reward_model").context_length == 40


@pytest.mark.parametrize("kind", ["separate", "reward_model"])
def test_everything_of_the_critic_is_saved_and_comes_back(kind, folders, tmp_path):
    policy = stirred(loaded(folders, kind))
    with torch.no_grad():
        policy.critic.trunk.embed_tokens.weight.add_(0.1)
    other = loaded(folders, kind)
    other.load_trainable_state(policy.trainable_state())
    values_BT = policy.state_values(inputs())
    assert torch.equal(other.state_values(inputs()), values_BT)
    policy.save_pretrained(tmp_path, tiny_tokenizer())
    trunk = AutoModel.from_pretrained(tmp_path / "critic").eval()
    found = SeparateCritic(trunk, load_value_head(tmp_path / "critic"))
    assert torch.equal(found.values(inputs()), values_BT)
    again = loaded(folders, "separate", path=tmp_path)
    assert torch.equal(again.state_values(inputs()), values_BT)
    assert not (tmp_path / "value_head.safetensors").exists()


def test_with_lora_the_critic_is_trained_as_a_whole(folders, tmp_path):
    policy = stirred(loaded(folders, "separate", lora=LoraSettings(rank=2)))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    its = {f"critic.{name}" for name, _ in policy.critic.named_parameters()}
    assert its < trained
    assert all("lora" in name for name in trained - its)
    assert not any("lora" in name for name in its)
    assert trained == policy.trainable_state().keys()
    policy.save_pretrained(tmp_path, tiny_tokenizer())
    assert (tmp_path / "critic" / "value_head.safetensors").is_file()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2


def test_the_reference_does_not_ask_the_critic(folders, monkeypatch):
    policy = loaded(folders, "separate", lora=LoraSettings(rank=2))
    expected = policy.evaluate(inputs()).logprobs_BT
    monkeypatch.setattr(SeparateCritic, "values", None)
    assert torch.equal(policy.reference().logprobs(inputs()), expected.detach())


def test_recorded_values_and_the_self_test_know_the_critic(folders):
    policy, tokenizer = stirred(loaded(folders, "separate")), tiny_tokenizer()
    sampler = Sampler(policy, 8)
    generator = Generator(policy, sampler, tokenizer, 0, Processes(), 2)
    prompts = prompts_from_rows([{"prompt": x} for x in ("a", "bcd", "efg hi")], tokenizer, 20)
    completions = generator.generate(prompts, 1, generator.uniforms(("x",), 3, 1))
    assert completions.samples.values_BT is None
    recorded = generator.old_evaluation(completions.samples)
    expected = policy.state_values(completions.samples.inputs).detach()
    torch.testing.assert_close(recorded.values_BT, expected, atol=1e-5, rtol=1e-5)
    result = self_test(generator, None, [p.ids for p in prompts])
    assert "critic separate, value head 32→1" in result.line()


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_critic_may_have_a_learning_rate_of_its_own(critic, folders):
    policy = loaded(folders, critic)
    settings = UpdateSettings(learning_rate=1e-3, critic_learning_rate=4e-3)
    groups = policy_optimizer(policy, settings).param_groups
    its = policy.value_head or policy.critic
    assert [group["scale"] for group in groups] == [1, 4]
    assert {*map(id, groups[1]["params"])} == {*map(id, its.parameters())}
    assert sum(len(g["params"]) for g in groups) == len(policy.trainable_state())
    assert len(policy_optimizer(policy, UpdateSettings()).param_groups) == 1
    assert "critic" in PPO().needs
