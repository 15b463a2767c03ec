"""`lmpg diagnose variance` on a tiny model: against the training's own loss, and what it writes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from dataclasses import replace

import pytest
import torch

from lmpg.cli.diagnosing import diagnose
from lmpg.functional.advantages import next_in_mask
from lmpg.functional.masking import loss_weights
from lmpg.language.diagnose.fitted_values import explained, fit_value_head
from lmpg.language.diagnose.gradient_variance import measured_parameters
from lmpg.language.models.critic import new_value_head
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.settings.section import UserError
from lmpg.training.microscope.compared_methods import compared_methods
from lmpg.training.microscope.estimates import estimates
from lmpg.training.microscope.gradient_sketch import GradientSketch
from lmpg.types import Minibatch, Rollout
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, save_tiny, tiny_model

REWARD = """
def letters(completions):
    return [completion.count("a") - len(completion) / 20 for completion in completions]


def same(completions):
    return [1.0 for completion in completions]
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny model with prompts and rewards, as flags."""
    folder = tmp_path_factory.mktemp("parts")
    save_tiny(folder / "model")
    rows = [{"prompt": "abc de"[: i % 5 + 1]} for i in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return [
        *("--model.path", str(folder / "model"), "--data.path", str(folder / "prompts.jsonl")),
        *("--rewards.functions", f"{folder / 'reward.py'}:letters"),
        *("--sampling.max-new-tokens", "5", "--batches", "6", "--batch-size", "8"),
        *("--group-size", "4", "--critic-batches", "2"),
    ]


@pytest.fixture(scope="module")
def measured(parts, tmp_path_factory):
    """What the command prints and writes."""
    place = tmp_path_factory.mktemp("out") / "found.json"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        diagnose(["variance", *parts, "--output", str(place)])
    return json.loads(place.read_text()), out.getvalue(), place.with_suffix(".html").read_text()


@catches("a row's gradient stands beside another row's weights", "one basis for all rows")
def test_the_gradient_of_each_estimator_is_that_of_the_loss_as_training_builds_it():
    policy = tiny_policy()
    rollout = random_rollout(policy)
    parameters = measured_parameters(policy, ("layers.1", "lm_head"))
    methods = compared_methods(4, (0.0, 0.9))
    sketch = GradientSketch(parameters, 10**6, 0)
    found = estimates(policy, [rollout], methods, sketch, 6)
    assert found.backwards < len(methods) * found.differentiated / 2
    for name, method in methods.items():
        new = policy.evaluate(rollout.inputs)
        old = replace(rollout, logprobs_BT=new.logprobs_BT.detach())
        batch = Minibatch.of(old, method.assign_credit(old))
        terms = method.loss_terms(replace(new, values_BT=rollout.values_BT), batch)
        loss = (terms["policy"] * loss_weights(batch.mask_BT, method.reduction, 6)).sum()
        expected = torch.cat([x.flatten() for x in torch.autograd.grad(-loss, parameters)])
        (got,) = found.sketches[name]
        torch.testing.assert_close(got.float(), expected, rtol=1e-4, atol=1e-6)


def tiny_policy():
    """A tiny model with a value head that says something."""
    head = new_value_head(32)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(3))
    ends = {"eos_token_ids": (EOS,), "pad_token_id": PAD, "context_length": CONTEXT}
    return CausalLMPolicy(tiny_model(), head, temperature=1.0, **ends)


def random_rollout(policy):
    """Two groups of four responses of different lengths, one of them without a score."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([6, 2, 3, 1, 5, 6, 2, 4])
    mask = torch.arange(6) < lengths[:, None]
    last = torch.arange(6) == lengths[:, None] - 1
    inputs = {
        "prompt_ids": torch.randint(3, 60, (8, 5), generator=random),
        "prompt_lengths": torch.tensor([5] * 4 + [3] * 4),
        "response_ids": torch.randint(3, 60, (8, 6), generator=random).where(mask, PAD),
        "response_lengths": lengths,
    }
    with torch.no_grad():
        values = policy.evaluate(inputs).values_BT
    return Rollout(
        inputs=inputs,
        mask_BT=mask,
        logprobs_BT=torch.zeros(8, 6),
        rewards_BT=torch.where(last, torch.randn(8, 1, generator=random), 0.0),
        terminated_BT=last,
        ended_BT=last,
        scorable_B=torch.arange(8) != 2,
        values_BT=values,
        next_values_BT=next_in_mask(values, mask),
    )


def test_the_table_the_numbers_and_the_page_tell_of_all_estimators(measured):
    found, out, page = measured
    names = list(compared_methods(4, (0.0, 0.9, 1.0)))
    assert list(found["estimators"]) == names
    for name in names:
        assert re.search(rf"^{re.escape(name)} +\d+\.\d+ ± \d", out, re.M), name
        assert page.count(f">{name}<") == 4, name  # three pictures and the table
    numbers = found["measured"]
    assert numbers["responses"] == 6 * 8
    assert numbers["sketch"] == numbers["parameters"]
    assert numbers["sketch_error"] == 0
    assert numbers["critic_responses"] == 2 * 8
    own = found["estimators"]["RLOO"]
    assert own["relative_variance"]["value"] == pytest.approx(1)
    assert own["squared_bias"]["value"] == 0
    shrunk = found["estimators"]["GRPO without std: fixed_length"]
    assert shrunk["relative_variance"]["value"] == pytest.approx((1 - 1 / 4) ** 2, rel=1e-4)
    assert "<script" not in page
    assert "http" not in page


def test_a_sketched_gradient_has_nearly_the_same_variances(parts, measured, tmp_path):
    place = tmp_path / "found.json"
    with contextlib.redirect_stdout(io.StringIO()):
        diagnose(["variance", *parts, "--sketch", "4099", "--output", str(place)])
    sketched, (exact, _, _) = json.loads(place.read_text()), measured
    assert 0 < sketched["measured"]["sketch_error"] < 0.1
    for name, of_exact in exact["estimators"].items():
        of_sketch = sketched["estimators"][name]["relative_variance"]["value"]
        assert of_sketch == pytest.approx(of_exact["relative_variance"]["value"], rel=0.1), name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--batch-size", "9"], "batch_size = 9 is no multiple of group_size = 4"),
        (["--sampling.top-k", "5"], "no estimator is unbiased"),
        (["--lams", "0.5", "1.5"], "lams has 1.5 in it"),
        (["--parameters", "layers.["], "parameters = layers.[ is no regular expression"),
        (["--parameters", "layers.9"], "parameters = layers.9 fits none"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(parts, wrong, said):
    flags = dict(itertools.pairwise(parts))
    given = {flag: value for flag, value in flags.items() if flag.startswith("--")}
    words = [x for flag, value in given.items() if flag != wrong[0] for x in (flag, value)]
    with pytest.raises(UserError, match=re.escape(said)):
        diagnose(["variance", *words, *wrong])


def test_a_reward_that_scores_all_alike_leaves_nothing_to_measure(parts):
    words = [x.replace(":letters", ":same") for x in parts]
    with pytest.raises(UserError, match="all 48 responses score 1, so that there is no gradient"):
        diagnose(["variance", *words])


@catches("a value head fitted without its constant")
def test_the_value_head_is_fitted_to_the_returns():
    policy = tiny_policy()
    with torch.no_grad():
        policy.value_head.weight.zero_()
    rollouts = []
    for seed in range(4):
        torch.manual_seed(seed)
        rollout = random_rollout(policy)
        states = policy.states(rollout.inputs)
        wanted = states.spread(states.hidden_ND[:, 0]).detach()[:, :1] * 2 + 5
        last = rollout.ended_BT
        rollouts.append(replace(rollout, rewards_BT=torch.where(last, wanted, 0.0)))
    fit_value_head(policy, rollouts)
    with torch.no_grad():
        seen = [replace(x, values_BT=policy.evaluate(x.inputs).values_BT) for x in rollouts]
    assert explained(seen) > 0.9
    mask = seen[0].counted_BT
    assert seen[0].values_BT[mask].mean() == pytest.approx(
        float(seen[0].returns_to_go(seen[0].rewards_BT, 1.0)[mask].mean()), rel=0.05
    )
