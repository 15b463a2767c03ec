"""Models that cannot be read as causal language models are refused when they are loaded."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmpg.language.models.architectures import NATS, probe_ids, unsupported
from lmpg.language.models.inputs import language_inputs
from lmpg.settings.section import UserError

_LONGEST_REASON = 300
_KNOWN, _LATER = 4, 4
"""Tokens of the text on which a model is tried, and tokens behind them that it must not see."""


@contextmanager
def refusing(policy: Any, what: str, fix: str = "choose another") -> Iterator[None]:
    """A block in which a model's own code is tried: whatever it raises becomes a UserError that
    says on what and how to mend it."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model's code meets in a text without more
        said = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON)
        raise UserError(
            f"model.path: {type(policy.causal_lm).__name__} fails on {what}, expected a causal "
            f"language model that reads token ids alone; {fix}. It said: {said}"
        ) from error


@torch.no_grad()
def refuse_unreadable(policy: Any) -> None:
    """UserError unless the policy's model reads a plain text, sees no later token, and has an
    output layer that reads its trunk's hidden states; those that lmpg computes itself do."""
    model = policy.causal_lm
    if unsupported(model, _KNOWN + _LATER) is None:
        return
    ids_1L = probe_ids(model, 1, _KNOWN + _LATER).to(policy.device)
    fix = "choose another"
    if policy.model is not model:
        fix = "choose another, or other model.lora.target_modules"
    with refusing(policy, "a plain text", fix), policy.in_float32():
        logits_LV, few_LV = (model(input_ids=x).logits[0] for x in (ids_1L, ids_1L[:, :_KNOWN]))
        hidden = policy.trunk(input_ids=ids_1L).last_hidden_state
    texts = ids_1L[0].tolist()
    inputs = language_inputs([texts[:1], texts[:3]], [texts[3:], texts[3:6]], 0)
    with refusing(policy, "texts of different lengths"), policy.in_float32():
        policy.states(inputs)
    if policy.bf16:
        with refusing(policy, "texts in its precision", "set model.precision to fp32"):
            policy.states(inputs)
    read = policy.head.input_size
    if hidden.shape[-1] != read:
        raise UserError(
            f"model.path: the output layer of {type(model).__name__} reads {read} numbers and its "
            f"trunk gives {hidden.shape[-1]}: there is something between them, expected a linear "
            "output layer on the trunk; choose another model"
        )
    if _difference(logits_LV[:_KNOWN], few_LV) > NATS:
        raise UserError(
            f"model.path: {type(model).__name__} gives tokens other probabilities when others "
            "follow, expected a causal language model; choose another, or set what its config "
            "calls is_decoder or causal"
        )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float().softmax(-1) - other.float().softmax(-1)).abs().max())
