"""What is computed before credit is assigned serves as the update's first pass as well."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmpg.algorithms.ppo import PPO
from lmpg.cli.main import settings_of
from lmpg.language.models.critic import critic_like
from lmpg.language.models.inputs import language_inputs
from lmpg.language.run_generator import old_logprobs_of
from lmpg.runtime.processes import Processes
from lmpg.training.old_logprobs import OldLogprobs
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from tests.language.rollouts.test_collect import source_of
from tests.support.objectives import tiny_policy
from tests.support.planted import catches
from tests.support.tiny import PAD, tiny_model

EPOCHS, ROWS = 3, 16


def inputs(first=5, last=4):
    return language_inputs([[first, 9, 12], [7, 3]], [[6, 6], [8, 9, last]], PAD)


def learned(keep: bool, separate: bool, bf16: bool, monkeypatch):
    """(weights after two iterations, the metrics of the last, forwards over whole rollouts)."""
    source = source_of(PPO(kl_coef=0.1))
    policy = source.generator.policy
    if separate:
        policy.critic, policy.value_head = critic_like(policy.model), None
        torch.nn.init.normal_(policy.critic.head.weight, generator=torch.Generator().manual_seed(0))
    policy.bf16 = bf16
    old = OldLogprobs("recomputed" if bf16 else "sampled", keep_forward=keep)
    source.generator = replace(source.generator, microbatch_size=ROWS, old_logprobs=old)
    forwards = []
    for module, name in ((policy, "_computed"), (policy.critic, "values")):
        if module is not None:
            present = getattr(module, name)
            counted = lambda x, f=present, n=name: forwards.append(n) or f(x)  # noqa: E731
            monkeypatch.setattr(module, name, counted, raising=False)
    sizes = {"rollout_size": ROWS, "minibatch_size": ROWS, "microbatch_size": ROWS}
    settings = UpdateSettings(epochs=EPOCHS, learning_rate=1e-3, **sizes)
    updater, algorithm = Updater(policy, settings, 2, 0, Processes()), source.algorithm
    for step in (1, 2):
        rollout = source.collect(step).rollout
        metrics = updater.update(algorithm, rollout, algorithm.assign_credit(rollout), step)
        left = policy.forward_reuse and policy.forward_reuse._entries
        assert not left  # it would be of weights that are no more
    return {n: x.clone() for n, x in policy.trainable_state().items()}, metrics, forwards


@pytest.mark.parametrize(("separate", "bf16"), [(True, False), (False, True), (True, True)])
def test_it_saves_a_forward_and_changes_nothing(separate, bf16, monkeypatch):
    expected, its, twice = learned(False, separate, bf16, monkeypatch)
    found, metrics, once = learned(True, separate, bf16, monkeypatch)
    rollouts, ahead = 2, bf16 + separate  # log-probs where they are not exact, values of a critic
    assert len(twice) - len(once) == rollouts * ahead
    assert len(once) == rollouts * EPOCHS * (1 + separate)
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name], rtol=0, atol=1e-5)
    assert metrics["policy/ratio_mean"] == pytest.approx(its["policy/ratio_mean"], abs=1e-3)


@catches("an evaluation keeps a graph that no update uses")
def test_an_evaluation_keeps_nothing():
    source = source_of(PPO())
    source.generator.policy.bf16 = True
    kept = OldLogprobs("recomputed", keep_forward=True)
    generator = replace(source.generator, old_logprobs=kept)
    source.evaluator = replace(source.evaluator, generator=generator)
    assert "kl" in source.evaluate()
    assert source.generator.policy.forward_reuse is None


def test_what_is_kept_is_given_once_with_its_gradient():
    policy = tiny_policy()
    with policy.keep_forward():
        kept = policy.evaluate(inputs()).logprobs_BT
    with torch.no_grad():  # who needs no gradient is told anew, and takes nothing away
        assert policy.evaluate(inputs()).logprobs_BT is not kept
    again = policy.evaluate(inputs()).logprobs_BT
    assert again is kept
    third = policy.evaluate(inputs()).logprobs_BT
    assert third is not kept
    (again.sum() + third.sum()).backward()  # two graphs: neither is freed by the other
    assert policy.model.get_input_embeddings().weight.grad.abs().sum() > 0


def computed_anew(policy, asked) -> bool:
    """Whether the next evaluation of `asked` is a forward of its own."""
    calls = []
    forward = policy.head.token_logprobs
    policy.head.token_logprobs = lambda *x: calls.append(x) or forward(*x)
    found = policy.evaluate(asked).logprobs_BT
    policy.head.token_logprobs = forward
    with torch.no_grad():
        torch.testing.assert_close(found, policy.evaluate(asked).logprobs_BT)
    return bool(calls)


@catches("a forward kept for reuse is used twice, for other rows, or for changed weights")
def test_it_is_not_used_for_other_rows_or_after_the_weights_have_changed():
    policy = tiny_policy(tiny_model())

    def ahead():
        with policy.keep_forward():
            policy.evaluate(inputs())

    ahead()
    assert not computed_anew(policy, inputs())
    assert computed_anew(policy, inputs())
    ahead()
    assert computed_anew(policy, inputs(first=6))
    ahead()
    assert computed_anew(policy, inputs(last=10))
    assert computed_anew(policy, inputs())  # what did not fit is not kept any longer
    ahead()
    with torch.no_grad():
        policy.load_trainable_state({n: x + 1 for n, x in policy.trainable_state().items()})
    assert computed_anew(policy, inputs())


@pytest.mark.parametrize(
    ("flags", "processes", "expected"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"--update.minibatch-size": 32}, 1, False),
        ({"--update.microbatch-size": 32}, 1, False),
        ({"--update.microbatch-tokens": 4096}, 1, False),
        ({"--sampling.max-refills": 1}, 1, False),
    ],
)
def test_it_is_computed_ahead_only_where_the_update_will_ask_for_it(flags, processes, expected):
    given = {"--model.path": "m", "--data.path": "d", "--rewards.functions": "f.py:f"}
    given["--update.microbatch-tokens"] = 0
    given |= {f"--update.{x}-size": 64 for x in ("rollout", "minibatch", "microbatch")}
    settings = settings_of("grpo", [str(x) for pair in (given | flags).items() for x in pair])
    for exact in (True, False):
        assert old_logprobs_of(settings, exact, processes).keep_forward is expected
