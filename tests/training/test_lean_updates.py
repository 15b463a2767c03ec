"""What saves memory changes an update by rounding at most, alone and all together: how rows are cut
and padded, what rows without a score hold, and where it is resumed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lmpg.algorithms.rloo import RLOO
from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.loading import load_policy
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.runs import checkpoint
from lmpg.runtime.processes import Processes
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from lmpg.types import Rollout
from tests.language.models.test_kept_weights import in_bf16
from tests.language.models.test_lora_options import stirred
from tests.support.planted import catches
from tests.support.tiny import PAD, tiny_tokenizer

WIDE = {"hidden_size": 128, "num_hidden_layers": 1}
"""Matrices of adapters have 4096 numbers, the fewest with 8-bit states."""
LORA: dict[str, Any] = {"lora": LoraSettings(rank=32), "precision": "fp32"}
OPTIONS: dict[str, Any] = {"bias": "lora_only", "modules_to_save": ("lm_head", "norm")}
OPTIONS |= {"use_dora": True, "use_rslora": True}
MODES: dict[str, tuple[dict[str, Any], str, float]] = {
    # settings of the model, optimizer, and how far apart rounding may bring what it has learned
    "lora over bf16": (LORA, "adamw", 1e-4),
    "its options": (LORA | {"lora": LoraSettings(rank=32, **OPTIONS)}, "adamw", 1e-4),
    "gradient checkpointing": (
        {"gradient_checkpointing": True, "precision": "fp32"},
        "adamw",
        1e-4,
    ),
    "8-bit states": ({"precision": "fp32"}, "adamw_8bit", 1e-3),
    "4-bit base": (LORA | {"quantisation": "nf4"}, "adamw", 1e-4),
    "all together": (
        LORA | {"quantisation": "nf4", "gradient_checkpointing": True, "precision": "bf16"},
        "adamw_8bit",
        3e-2,
    ),
}
OF_BITSANDBYTES = ("8-bit states", "4-bit base", "all together")
without = importlib.util.find_spec("bitsandbytes") is None
every_mode = pytest.mark.parametrize(
    "mode",
    [
        pytest.param(x, marks=pytest.mark.skipif(x in OF_BITSANDBYTES and without, reason="none"))
        for x in MODES
    ],
)
PROMPTS = [[5, 6, 7], [9], [5, 6, 7], [9], [8, 4, 3, 20, 21], [30, 31]]
RESPONSES = [[10, 11, 12], [13, 14], [15, 16, 17, 18, 19, 20], [21], [22, 23, 24], [25, 26, 27, 28]]
UNSCORABLE = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return in_bf16(tmp_path_factory.mktemp("model"), "qwen2", **WIDE)


class Learner:
    """A policy of a mode with its optimizer."""

    def __init__(self, path: str, mode: str, microbatch: int = 3) -> None:
        model, optimizer, self.within = MODES[mode]
        torch.manual_seed(0)
        asked = ModelSettings(path=path, **model)
        given = tiny_tokenizer()
        self.policy = load_policy(asked, given, critic=False, temperature=1.0)
        if "lora" in model:
            stirred(self.policy)
        settings = UpdateSettings(
            rollout_size=6,
            minibatch_size=6,
            microbatch_size=microbatch,
            epochs=2,
            optimizer=optimizer,  # type: ignore[arg-type]
            learning_rate=1e-3,
            adam_eps=1e-4,
        )
        self.updater = Updater(self.policy, settings, 2, 0, Processes())
        self.start = self.learned()

    def learned(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.policy.named_parameters() if p.requires_grad}

    def update(self, rollout: Rollout, iteration: int = 1) -> dict[str, torch.Tensor]:
        algorithm = RLOO(group_size=2, kl_coef=0.0, entropy_coef=0.05)
        credit = algorithm.assign_credit(rollout)
        self.updater.update(algorithm, rollout, credit, iteration)
        return self.learned()


def rollout_of(policy: CausalLMPolicy) -> Rollout:
    """Responses of many lengths, of which one has no score."""
    inputs = language_inputs(PROMPTS, RESPONSES, PAD)
    lengths, width = inputs["response_lengths"], inputs["response_ids"].shape[1]
    step_BT = torch.arange(width).expand(len(lengths), width)
    last_BT = step_BT == lengths[:, None] - 1
    with torch.no_grad():
        old_BT = policy.evaluate(inputs).logprobs_BT
    return Rollout(
        inputs=inputs,
        mask_BT=step_BT < lengths[:, None],
        logprobs_BT=old_BT,
        rewards_BT=last_BT * torch.tensor([1.0, 0.2, -0.5, 0.0, 0.7, 0.1])[:, None],
        terminated_BT=last_BT,
        ended_BT=last_BT,
        scorable_B=torch.arange(len(lengths)) != UNSCORABLE,
    )


def wider(rollout: Rollout) -> Rollout:
    """Columns of an arbitrary token before each prompt and behind each response."""
    pad = torch.nn.functional.pad
    steps = {
        k: pad(x, (0, 2)) for k, x in vars(rollout).items() if k.endswith("_BT") and x is not None
    }
    ids = {"prompt_ids": (3, 0), "response_ids": (0, 2)}
    inputs = {k: pad(x, ids[k], value=7) if k in ids else x for k, x in rollout.inputs.items()}
    return replace(rollout, inputs=inputs, **steps)


CUTS: dict[str, tuple[int, Callable[[Rollout], Rollout]]] = {
    "one by one": (1, lambda rollout: rollout),
    "all at once": (6, lambda rollout: rollout),
    "padded": (3, wider),
}


@catches("loss weights counted per micro-batch of adapters")
@every_mode
def test_how_rows_are_cut_and_padded_moves_an_update_by_rounding_alone(mode, path):
    first = Learner(path, mode)
    before = {n: p.detach().clone() for n, p in first.policy.named_parameters()}
    rollout = rollout_of(first.policy)
    expected = first.update(rollout)
    for n, p in first.policy.named_parameters():
        assert p.requires_grad != torch.equal(p, before[n]), n
    for microbatch, changed in CUTS.values():
        found = Learner(path, mode, microbatch).update(changed(rollout))
        for n, x in expected.items():
            assert (found[n] - x).norm() <= first.within * (x - first.start[n]).norm(), n


@catches("what a row without a score holds reaches the gradient")
@every_mode
def test_what_a_row_without_a_score_holds_changes_no_bit(mode, path):
    first = Learner(path, mode)
    rollout = rollout_of(first.policy)
    expected = first.update(rollout)
    rewards, inputs = rollout.rewards_BT.clone(), dict(rollout.inputs)
    inputs["response_ids"] = inputs["response_ids"].clone()
    rewards[UNSCORABLE], inputs["response_ids"][UNSCORABLE] = torch.nan, 40
    found = Learner(path, mode).update(replace(rollout, rewards_BT=rewards, inputs=inputs))
    assert all(torch.equal(found[n], x) for n, x in expected.items())


@catches("an optimizer that begins anew")
@every_mode
def test_an_update_after_a_checkpoint_is_the_same_bit_for_bit(mode, path, tmp_path):
    straight = Learner(path, mode)
    rollout = rollout_of(straight.policy)
    straight.update(rollout)
    state = {"updater": straight.updater.state(), "policy": straight.policy.trainable_state()}
    checkpoint.save(tmp_path, 1, state, keep=1)
    expected = straight.update(rollout, 2)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    resumed = Learner(path, mode)
    resumed.policy.load_trainable_state(saved[1]["policy"])
    resumed.updater.load_state(saved[1]["updater"])
    found = resumed.update(rollout, 2)
    assert all(torch.equal(found[n], x) for n, x in expected.items())
    assert any(not torch.equal(found[n], x) for n, x in resumed.start.items())
