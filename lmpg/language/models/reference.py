"""The reference: a frozen policy that others are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmpg.language.models.forward.response_states import ResponseStates
from lmpg.language.models.head import Head
from lmpg.language.models.lora import learned_at_start
from lmpg.runtime.parts import exchanged, spread_as

if TYPE_CHECKING:
    from lmpg.language.models.policy import CausalLMPolicy


class Reference:
    """The frozen policy that a KL penalty is measured against: the policy as it was, or a model of
    its `own`. The policy's adapter is not copied with its model, but put aside or exchanged; where
    putting it aside does not give the policy as it was (trained before, or with biases), for a copy
    of all that learns.

    policy: what computes, with its own weights unless it is the policy that trains; these are kept
    in `dtype`, which must hold them.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        own: CausalLMPolicy | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self._shared = own is None and policy.model is not policy.causal_lm
        self.policy = own or (policy if self._shared else policy.frozen_copy(dtype))
        self._start = learned_at_start(policy.model) if self._shared else {}
        self.policy.head.forbid_early(*policy.head.early)
        self._refreshed: dict[str, Tensor] = {}

    @property
    def head(self) -> Head:
        """Its output layer."""
        return self.policy.head

    @torch.no_grad()
    def logprobs(self, inputs: dict[str, Tensor]) -> Tensor:
        """log π_ref of the response tokens, [B, T], float32, 0 in padding."""
        with self._its_weights():
            return self.policy.logprobs(inputs)

    @torch.no_grad()
    def states(self, inputs: dict[str, Tensor]) -> ResponseStates:
        """The hidden states before the response tokens."""
        with self._its_weights():
            return self.policy.states(inputs)

    @torch.no_grad()
    def refresh(self, policy: CausalLMPolicy) -> None:
        """Become `policy` as it is now."""
        named = policy.model.named_parameters()
        self.load_state({name: p.detach().clone() for name, p in named if p.requires_grad})

    def state(self) -> dict[str, Tensor]:
        """What the last refresh made of it, for a checkpoint; {} before any."""
        return self._refreshed

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Become what `state` was taken from."""
        its = dict(self.policy.model.named_parameters())
        self._refreshed = {name: spread_as(its[name], x) for name, x in state.items()}
        if not self._shared:
            for name, weights in self._refreshed.items():
                its[name].copy_(weights)
            self._refreshed = {name: its[name] for name in self._refreshed}

    @contextmanager
    def _its_weights(self) -> Iterator[None]:
        """The policy with the reference's adapter, or without any, for the time of the block."""
        its = self._refreshed or self._start
        if not self._shared:
            yield
        elif not its:
            with self.policy.without_adapter():
                yield
        else:
            with exchanged(dict(self.policy.model.named_parameters()), its):
                yield
