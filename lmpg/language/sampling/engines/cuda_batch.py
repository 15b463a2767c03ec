"""One batch being sampled in memory that never moves: what a captured decode step reads and writes.

N places of a batch, each of which samples one row's response. Slots: places in the record of all
rows and steps, with one row more, into which places write that sample for no row any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lmpg.language.sampling.choice import choose
from lmpg.language.sampling.engines.cuda import CudaDecoder
from lmpg.language.sampling.engines.graphs import bucketed
from lmpg.language.sampling.samples import DistinctPrompts, Recorded
from lmpg.language.sampling.stops import StopSearch
from lmpg.runtime.machine import widest


@dataclass(frozen=True)
class Choosing:
    """How tokens are sampled, and which of them end a response. bar_early: gives logits in which
    what cannot come yet has probability 0, by the step."""

    top_k: int
    top_p: float
    eos_token_ids: tuple[int, ...]
    bar_early: Callable[[Tensor, Tensor], Tensor] = lambda logits_NV, step: logits_NV


class CudaBatch:
    """A rollout: `start`, then one `step` per token."""

    def __init__(
        self,
        decoder: CudaDecoder,
        logits: Callable[[Tensor], Tensor],
        values: Callable[[Tensor], Tensor] | None,
        shape: tuple[int, int],
        choosing: Choosing,
    ):
        """shape: rows and steps at most."""
        self._decoder, self._choosing = decoder, choosing
        self._logits, self._values = logits, values
        self.greedy = False
        self._rows, self._steps = shape
        device = decoder.weights.embedding.device
        slots = (self._rows + 1) * self._steps
        self._eos = torch.tensor(choosing.eos_token_ids, device=device)
        whole = torch.zeros(3, self._rows, dtype=torch.long, device=device)
        self._tokens_N, self._rows_N, self._limits_N = whole
        self._going_N = torch.zeros(self._rows, dtype=torch.bool, device=device)
        self._step = torch.zeros(1, dtype=torch.long, device=device)
        self._uniforms = torch.zeros(slots, dtype=widest(device), device=device)
        self._ids = torch.zeros(slots, dtype=torch.long, device=device)
        numbers = torch.zeros(3, slots, device=device)
        self._logprobs, self._entropy, self._values_before = numbers

    def start(
        self,
        prompts: DistinctPrompts,
        limits_B: Tensor,
        uniforms_BT: Tensor | None,
        search: StopSearch | None = None,
    ) -> None:
        """Reads prompts and samples each row's first token (without uniforms the likeliest).

        Row b starts in place b and gets at most limits_B[b] tokens, or ends where `search` finds a
        stop string.
        """
        self._search, self._num_read = search, 0
        num_rows, device = len(limits_B), self._step.device
        self.greedy = uniforms_BT is None
        self._step.zero_()
        self._tokens_N.zero_()
        self._rows_N.fill_(self._rows)[:num_rows] = torch.arange(num_rows, device=device)
        self._limits_N.zero_()[:num_rows] = limits_B
        self._going_N.zero_()[:num_rows] = True
        if uniforms_BT is not None:
            width = min(self._steps, uniforms_BT.shape[1])
            self._uniforms.view(-1, self._steps)[:num_rows, :width] = uniforms_BT[:, :width]
        parts = prompts.ids_PL, prompts.lengths_P, prompts.prompt_B
        self._choose(self._decoder.prefill(*parts))

    def step(self, num_places: int, columns: int) -> None:
        """Feeds the newest tokens of the first places to the model and samples the next ones."""
        self._choose(self._decoder.advance(self._tokens_N[:num_places], columns))

    def look_for_stops(self, num_places: int, num_done: int) -> None:
        """Ends the rows in the first places whose newest tokens complete a stop string."""
        if self._search is None:
            return
        rows_N = self._rows_N[:num_places]
        ids = self._ids.view(-1, self._steps)[:, self._num_read : num_done].index_select(0, rows_N)
        over = self._search.read(rows_N.tolist(), ids.T.tolist())
        self._going_N[:num_places].logical_and_(~torch.tensor(over, device=ids.device))
        self._num_read = num_done

    def drop_finished(self, num_places: int, columns: int) -> int:
        """Removes finished rows if the others fit into a smaller bucket.

        Returns how many places are left, 0 if all rows have finished. The host waits for the device
        here and nowhere else.
        """
        num_going = int(self._going_N[:num_places].sum())
        fewer = bucketed(num_going)
        if num_going == 0 or fewer >= num_places:
            return num_places if num_going else 0
        holes = (~self._going_N[:num_going]).nonzero()[:, 0]
        tail = self._going_N[num_going:num_places].nonzero()[:, 0] + num_going
        for x_N in (self._tokens_N, self._rows_N, self._limits_N, self._going_N):
            x_N.index_copy_(0, holes, x_N.index_select(0, tail))
        self._decoder.keep(holes, tail, columns)
        self._rows_N[num_going:] = self._rows
        self._going_N[num_going:] = False
        return fewer

    def recorded(self, num_rows: int, num_steps: int) -> Recorded:
        """The record of the first rows and steps, with entries after the ends of responses."""
        ids, logprobs, entropy, values = (
            x.view(-1, self._steps)[:num_rows, :num_steps]
            for x in (self._ids, self._logprobs, self._entropy, self._values_before)
        )
        return Recorded(ids, logprobs, entropy, None if self._values is None else values)

    def _choose(self, hidden_ND: Tensor) -> None:
        """Samples the next token of each of the first N places and records it."""
        num_places = len(hidden_ND)
        slots_N = self._rows_N[:num_places] * self._steps + self._step
        uniforms_N = None if self.greedy else self._uniforms.index_select(0, slots_N)
        top = self._choosing.top_k, self._choosing.top_p
        logits_NV = self._choosing.bar_early(self._logits(hidden_ND), self._step)
        choice = choose(logits_NV, uniforms_N, *top)
        self._tokens_N[:num_places] = choice.tokens_R
        self._ids.index_copy_(0, slots_N, choice.tokens_R)
        self._logprobs.index_copy_(0, slots_N, choice.logprobs_R)
        self._entropy.index_copy_(0, slots_N, choice.entropy_R)
        if self._values is not None:
            self._values_before.index_copy_(0, slots_N, self._values(hidden_ND))
        self._step.add_(1)
        goes_on_N = self._limits_N[:num_places] > self._step
        goes_on_N &= (choice.tokens_R[:, None] != self._eos).all(1)
        self._going_N[:num_places].logical_and_(goes_on_N)
