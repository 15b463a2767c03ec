"""Rollouts whose decode step is captured once per shape and replayed: what is kept between them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.cuda import CudaDecoder
from lmpg.language.sampling.engines.cuda_batch import Choosing, CudaBatch
from lmpg.language.sampling.engines.graphs import Capture, Replays, bucketed
from lmpg.language.sampling.engines.held_weights import copy_weights_in_place
from lmpg.language.sampling.engines.policy_weights import PolicyWeights, policy_weights
from lmpg.language.sampling.samples import DistinctPrompts, Samples, recorded_samples
from lmpg.language.sampling.stops import StopSearch

_COLUMNS = 64
"""Columns of the cache that attention reads at least."""


class CudaRollouts:
    """Samples from a policy whose architecture lmpg knows.

    Memory is allocated for the largest rollout so far and stays until `let_go`: the cache of all
    its rows, and the weights in the precision of products. Each rollout copies the weights of now
    into it, unless it `is_current`, and has them.
    """

    def __init__(self, policy: CausalLMPolicy, top_k: int, top_p: float, capture: Capture):
        self._policy = policy
        self._choosing = Choosing(top_k, top_p, policy.eos_token_ids, policy.head.bar_early)
        self._replays = Replays(capture)
        self._room = (0, 0, 0)
        self._held: tuple[PolicyWeights, CudaBatch] | None = None
        self.is_current = False

    @property
    def backend(self) -> str:
        """How steps are run, in words."""
        return self._replays.backend

    def sample(
        self,
        prompts: DistinctPrompts,
        limits_B: Tensor,
        uniforms_BT: Tensor | None,
        check_every: int,
        search: StopSearch | None = None,
    ) -> Samples:
        """The responses to `prompts`; row b's has at most limits_B[b] tokens.

        Asks every `check_every` steps whether any row goes on, because asking waits for the device;
        at most check_every − 1 steps are done in vain. search: looks for stop strings.
        """
        num_steps = int(limits_B.max())
        limits_B = limits_B.to(prompts.prompt_B.device)
        length = prompts.ids_PL.shape[1] + num_steps
        batch = self._prepared(len(limits_B), max(length, _COLUMNS), num_steps)
        batch.start(prompts, limits_B, uniforms_BT, search)
        num_done = self._decoded(batch, prompts, num_steps, check_every)
        recorded = batch.recorded(len(limits_B), num_done)
        stop_B = None if search is None else search.last_tokens(num_done)
        return recorded_samples(recorded, limits_B, prompts, self._policy, stop_B)

    def let_go(self) -> None:
        """Frees all memory. The next rollout, which reads the weights anew anyway, takes as much as
        it needs and captures its steps again: more time, the same numbers."""
        self._replays.forget()
        self._held, self._room = None, (0, 0, 0)

    def _decoded(
        self, batch: CudaBatch, prompts: DistinctPrompts, num_steps: int, check_every: int
    ) -> int:
        """Runs steps until all rows have finished; returns how many there were, with the first."""
        places, width = bucketed(len(prompts.prompt_B)), prompts.ids_PL.shape[1]
        for done in range(1, num_steps):
            columns = bucketed(max(width + done, _COLUMNS))
            if done % check_every == 0:
                batch.look_for_stops(places, done)
                places = batch.drop_finished(places, columns)
                if places == 0:
                    return done
            key = places, columns, batch.greedy
            self._replays(key, partial(batch.step, places, columns))
        batch.look_for_stops(places, num_steps)
        return num_steps

    def _settled(self, held: PolicyWeights, layer: int, fresh: Any) -> Any:
        """A layer (−1: the head) in the memory that held it before, where it fits: of the weights
        that are read no more than a layer is there twice."""
        old = held.head if layer < 0 else held.decoder.layers[layer]
        return old if copy_weights_in_place(old, fresh, self._policy) else fresh

    def _prepared(self, *needed: int) -> CudaBatch:
        """The batch, with memory for so many rows, columns and steps, and the weights of now."""
        rows, columns, steps = room = tuple(map(max, self._room, map(bucketed, needed)))
        if room == self._room and self._held is not None:
            held, batch = self._held
            if self.is_current:
                return batch
            weights = policy_weights(self._policy, columns, partial(self._settled, held))
            if copy_weights_in_place(held, weights, self._policy):
                return batch
        else:
            weights = policy_weights(self._policy, columns)
        self._replays.forget()
        self._held = None  # its memory is free before the new one's is taken
        decoder = CudaDecoder(weights.decoder, columns, rows)
        batch = CudaBatch(decoder, weights.logits, weights.values, (rows, steps), self._choosing)
        self._held, self._room = (weights, batch), (rows, columns, steps)
        return batch
