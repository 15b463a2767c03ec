"""Responses from a policy, by an engine of lmpg's where its architecture is known, else by its own
forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from lmpg.language.models.architectures import TOLERANCE, unsupported
from lmpg.language.models.forward.padding import bears_padding
from lmpg.language.models.inputs import of_equal_length
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import num_weights
from lmpg.language.sampling.decoding import Decoding
from lmpg.language.sampling.engines.cpu import CpuDecoder
from lmpg.language.sampling.engines.cuda import CudaDecoder
from lmpg.language.sampling.engines.cuda_rollouts import CudaRollouts
from lmpg.language.sampling.engines.graphs import Capture, CudaGraphs
from lmpg.language.sampling.engines.policy_weights import PolicyWeights, Reading
from lmpg.language.sampling.engines.protocol import Engine
from lmpg.language.sampling.engines.stored import Unread
from lmpg.language.sampling.engines.transformers import refuse_unusable_cache, transformers_engine
from lmpg.language.sampling.engines.unreadable import unreadable_layers
from lmpg.language.sampling.own_engine import engine_deviation, own_engine, own_rounding
from lmpg.language.sampling.samples import DistinctPrompts, Samples, concatenated
from lmpg.language.sampling.stops import NewSearch, StopSearch
from lmpg.runtime.machine import worthwhile_threads
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError

_ROUNDING = 2.0
"""How far an engine may be from the model in float32, in multiples of what the model's own forward
is in the policy's precision."""


class Sampler:
    """Samples at most `max_new_tokens` per response, fewer where the model's context ends.

    With top_k or top_p tokens are drawn from fewer; what is recorded is of the whole distribution.
    backend: how the newest rollout was computed, in words. comparable: its log-probs are of the
    distribution that tokens were drawn from, unless it was cut off.
    """

    comparable = True
    remote = False
    ahead = 0
    max_deviation = None

    def __init__(
        self,
        policy: CausalLMPolicy,
        max_new_tokens: int,
        top_k: int = 0,
        top_p: float = 1.0,
        capture: Capture | None = None,
        stops: NewSearch | None = None,
        keep_engine: bool = True,
        engine: str = "auto",
    ):
        """capture: what repeats decode steps; if none is given, CUDA graphs where there is CUDA.
        stops: begins the search for stop strings in a batch. keep_engine: whether the CUDA engine's
        memory stays between rollouts, which saves time. engine: native or transformers, where one
        of them is asked for."""
        self.policy = policy
        self.max_new_tokens = max_new_tokens
        self.top_k, self.top_p = top_k, top_p
        self._stops, self._keep_engine, self._asked = stops, keep_engine, engine
        # Asking which rows have finished waits for a GPU; computing them a while longer is cheaper
        self.check_every = 1 if policy.device.type == "cpu" else 16
        self._deviation: float | None = None
        self._tried = False
        self._rounding = 0.0
        self.backend = "not yet"
        if capture is None and policy.device.type == "cuda":
            capture = CudaGraphs()
        self._cuda = None if capture is None else CudaRollouts(policy, top_k, top_p, capture)
        self._reading = Reading(policy)

    @contextmanager
    def reading_once(self) -> Iterator[None]:
        """A block in which the policy does not learn: its weights are read once, by the first of
        all responses in it."""
        try:
            with self._reading.once():
                yield
        finally:
            self._after_sampling()

    @property
    def exact(self) -> bool:
        """Whether its log-probs are the training forward's, up to rounding."""
        return self.policy.rounds is None

    def publish(self, processes: Processes) -> None:
        """Its engines read the policy's weights anew for each rollout."""

    def ask_ahead(
        self, prompts: list[list[int]], group_size: int, uniforms_BT: Tensor | None
    ) -> None:
        """Servers alone can sample while this process learns."""
        raise ValueError("sampling.ahead without a server")

    @torch.no_grad()
    def sample(
        self, prompts: list[list[int]], group_size: int, uniforms_BT: Tensor | None
    ) -> Samples:
        """`group_size` responses to each prompt; row b is sample b % G of prompt b // G.

        uniforms_BT in [0, 1), one per row and step: the same number gives the same token in any
        batch. None takes the likeliest token.
        """
        limits_B = self._limits(prompts).repeat_interleave(group_size)
        if uniforms_BT is not None:
            self._check_uniforms(uniforms_BT, len(limits_B))
        return self.answered(prompts, group_size, limits_B, uniforms_BT)

    def answered(
        self,
        prompts: list[list[int]],
        group_size: int,
        limits_B: Tensor,
        uniforms_BT: Tensor | None,
    ) -> Samples:
        """As `sample` does, at most limits_B[b] tokens in row b."""
        if uniforms_BT is not None:
            uniforms_BT = uniforms_BT.to(self.policy.device)
        if bears_padding(self.policy.trunk):
            return self._sampled(prompts, group_size, limits_B, uniforms_BT)
        parts, order = [], []
        for chosen in of_equal_length(prompts):
            rows = [i * group_size + j for i in chosen for j in range(group_size)]
            of_rows = None if uniforms_BT is None else uniforms_BT[rows]
            part = [prompts[i] for i in chosen]
            parts.append(self._sampled(part, group_size, limits_B[rows], of_rows))
            order += rows
        return concatenated(parts, self.policy.pad_token_id).rows(torch.tensor(order).argsort())

    def _sampled(
        self,
        prompts: list[list[int]],
        group_size: int,
        limits_B: Tensor,
        uniforms_BT: Tensor | None,
    ) -> Samples:
        """Of prompts that may be padded to one length."""
        device = self.policy.device
        distinct = DistinctPrompts.of(prompts, group_size, self.policy.pad_token_id).to(device)
        length = distinct.ids_PL.shape[1] + int(limits_B.max())
        reason = self.why_slower(length)
        if reason is None and self._cuda is not None:
            search = self._search(distinct)
            samples = self._cuda.sample(distinct, limits_B, uniforms_BT, self.check_every, search)
            self.backend = f"by the CUDA engine, {self._cuda.backend}"
            self._after_sampling()
            return samples
        return self.decoded(self.engine(reason, length), distinct, limits_B, uniforms_BT).samples()

    def _after_sampling(self) -> None:
        """What the CUDA engine has read serves as long as the policy does not learn."""
        if self._cuda is not None:
            self._cuda.is_current = self._reading.inside
            if not (self._keep_engine or self._reading.inside):
                self._cuda.let_go()

    @property
    def keeps_rows(self) -> bool:
        """Whether rows may leave with what is cached of them, as far as lmpg's own engine goes."""
        return self._cuda is None

    def decoded(
        self,
        engine: Engine,
        prompts: DistinctPrompts,
        limits_B: Tensor,
        uniforms_BT: Tensor | None,
        unread: Unread | None = None,
        stores: bool = False,
    ) -> Decoding:
        """A batch that is sampled to its end. unread, stores: as `Decoding` takes them."""
        num_steps = int(limits_B.max())
        work = num_weights(self.policy.causal_lm) * len(limits_B)
        with engine.precision(), worthwhile_threads(work):
            limits_B = limits_B.to(self.policy.device)
            search = self._search(prompts)
            decoding = Decoding(engine, self.policy, prompts, limits_B, search, unread, stores)
            for step in range(num_steps):
                uniforms_B = None if uniforms_BT is None else uniforms_BT[:, step]
                decoding.choose(uniforms_B, self.top_k, self.top_p)
                if (step + 1) % self.check_every == 0 and not decoding.drop_finished():
                    break
                if step + 1 < num_steps:
                    decoding.advance()
        return decoding

    def why_slower(self, length: int) -> str | None:
        """Why the model's own forward samples; None where lmpg's engine does."""
        if self._asked == "transformers":
            return "sampling.engine asks for it"
        reason = why_transformers(self.policy, length) or self._why_distrusted()
        if reason is not None and self._asked == "native":
            raise UserError(
                "sampling.engine = native, but lmpg's engine cannot compute this model, because "
                f"{reason}; expected transformers or auto"
            )
        return reason

    def _search(self, prompts: DistinctPrompts) -> StopSearch | None:
        return None if self._stops is None else self._stops(prompts)

    def engine(
        self, reason: str | None, length: int, weights: PolicyWeights | None = None
    ) -> Engine:
        """lmpg's for the CPU where no `reason` speaks against it, in contexts of `length` tokens.
        Weights are read here, anew for each rollout, unless they are given: an update has changed
        them."""
        if reason is None:
            self.backend = "by the CPU engine"
            return own_engine(self.policy, length, weights=weights or self._reading(length))
        self.backend = f"by the model's own forward, which is slower, because {reason}"
        if not self._tried:
            refuse_unusable_cache(self.policy)
            self._tried = True
        return transformers_engine(self.policy)

    def _why_distrusted(self) -> str | None:
        """How far the engine's hidden states are from the model's, if too far; looked at once."""
        if self._deviation is None:
            decoder = CpuDecoder if self._cuda is None else partial(CudaDecoder, rows=2)
            self._deviation = engine_deviation(self.policy, decoder)
            self._rounding = own_rounding(self.policy)
        if self._deviation <= max(TOLERANCE, _ROUNDING * self._rounding):
            return None
        own = f", whose own rounding is {self._rounding:.2g}" if self._rounding else ""
        return (
            f"hidden states of lmpg's engine deviate from the model's by {self._deviation:.2g}{own}"
        )

    def _limits(self, prompts: list[list[int]]) -> Tensor:
        """Tokens that fit after each prompt."""
        if not prompts:
            raise ValueError("there are no prompts to sample from")
        room = [self.policy.context_length - len(ids) for ids in prompts]
        for i, (ids, left) in enumerate(zip(prompts, room)):
            if not ids or left < 1:
                raise ValueError(
                    f"prompt {i} has {len(ids)} tokens, expected 1 to "
                    f"{self.policy.context_length - 1}, which leaves room for a response in the "
                    f"model's context of {self.policy.context_length}"
                )
        return torch.tensor([min(left, self.max_new_tokens) for left in room])

    def _check_uniforms(self, uniforms_BT: Tensor, rows: int) -> None:
        if uniforms_BT.shape[0] != rows or uniforms_BT.shape[1] < self.max_new_tokens:
            raise ValueError(
                f"uniforms_BT has shape {tuple(uniforms_BT.shape)}, expected "
                f"({rows}, {self.max_new_tokens}): one number per row and step"
            )


def why_transformers(policy: CausalLMPolicy, length: int) -> str | None:
    """Why transformers must compute a policy in contexts of `length` tokens; None if lmpg can."""
    return unsupported(policy.causal_lm, length) or unreadable_layers(policy.causal_lm)
