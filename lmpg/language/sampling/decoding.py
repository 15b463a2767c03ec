"""Decoding of one batch: the R rows still going, and the record of all B rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmpg.language.models.inputs import moved
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.choice import Choice, choose
from lmpg.language.sampling.engines.protocol import Engine
from lmpg.language.sampling.engines.stored import Stored, Unread
from lmpg.language.sampling.samples import DistinctPrompts, Recorded, Samples, recorded_samples
from lmpg.language.sampling.stops import StopSearch


class Decoding:
    """One batch being sampled: `choose` and `advance` in turns, then `samples`."""

    def __init__(
        self,
        engine: Engine,
        policy: CausalLMPolicy,
        prompts: DistinctPrompts,
        limits_B: Tensor,
        search: StopSearch | None = None,
        unread: Unread | None = None,
        stores: bool = False,
    ):
        """All on the policy's device: row b gets at most limits_B[b] tokens, or ends where `search`
        finds a stop string. unread: what is to be read of the prompts where some of them is stored;
        then each has one row. stores: whether rows leave with what is cached of them, see `stored`.
        """
        self._engine, self._policy, device = engine, policy, policy.device
        self._search, self._num_read = search, 0
        self._eos = torch.tensor(policy.eos_token_ids, device=device)
        self._limits_R = self._limits_B = limits_B
        self._first_limit = int(limits_B.min())
        self._rows_R = torch.arange(len(limits_B), device=device)
        self._going_R = torch.ones(len(limits_B), dtype=torch.bool, device=device)
        self._records: list[tuple[Tensor, Choice, Tensor | None]] = []
        self._prompts = prompts
        self._stores, self._stored = stores, dict[int, Stored]()
        decoder: Any = engine.decoder
        if unread is None:
            parts = prompts.ids_PL, prompts.lengths_P, prompts.prompt_B
            self._hidden_RD = decoder.prefill(*parts)
        else:
            self._hidden_RD = decoder.go_on(unread)

    def choose(self, uniforms_B: Tensor | None, top_k: int, top_p: float) -> None:
        """Samples and records the next token of every row still going."""
        engine, rows_R = self._engine, self._rows_R
        uniforms_R = None if uniforms_B is None else uniforms_B.index_select(0, rows_R)
        logits_RV = engine.logits(self._hidden_RD)
        if self._policy.head.early[1]:
            step = torch.tensor([len(self._records)], device=logits_RV.device)
            logits_RV = self._policy.head.bar_early(logits_RV, step)
        choice = choose(logits_RV, uniforms_R, top_k, top_p)
        values_R = None if engine.values is None else engine.values(self._hidden_RD)
        self._records.append((rows_R, choice, values_R))
        self._tokens_R = choice.tokens_R
        self._going_R = self._going_R & ~torch.isin(choice.tokens_R, self._eos)
        if len(self._records) >= self._first_limit:
            self._going_R &= self._limits_R > len(self._records)

    def drop_finished(self) -> bool:
        """Removes finished rows if they are many enough; False if all rows have finished."""
        self._look_for_stops()
        going_R, num_rows = self._going_R, len(self._going_R)
        num_going = int(going_R.sum())
        finished = num_rows - num_going
        if num_going and finished <= num_rows * self._engine.drop_share:
            return True
        self._store(~going_R)
        holes = (~going_R[:num_going]).nonzero()[:, 0]
        tail = going_R[num_going:].nonzero()[:, 0] + num_going
        for name in ("_rows_R", "_limits_R", "_tokens_R", "_going_R"):
            setattr(self, name, moved(getattr(self, name), holes, tail, num_going))
        self._engine.decoder.keep(holes, tail, num_going)
        return num_going > 0

    def advance(self) -> None:
        """Feeds the newest tokens to the model."""
        self._hidden_RD = self._engine.decoder.advance(self._tokens_R)

    def samples(self) -> Samples:
        """What was recorded, cut after each row's first EOS token or stop string, or at its
        limit."""
        self._look_for_stops()
        stop_B = None if self._search is None else self._search.last_tokens(len(self._records))
        given = self._limits_B, self._prompts, self._policy, stop_B
        return recorded_samples(self._recorded(), *given)

    def stored(self) -> dict[int, Stored]:
        """By row, what is cached of its prompt and of the tokens that it was given, of which the
        last ones may lie behind its end; {} where nothing can be stored."""
        self._store(torch.ones_like(self._going_R))
        self._rows_R = self._rows_R[:0]
        return self._stored

    def _store(self, leaving_R: Tensor) -> None:
        places = leaving_R.nonzero()[:, 0].tolist()
        decoder: Any = self._engine.decoder
        found = decoder.stored(places) if self._stores and places else None
        if found is not None:
            self._stored.update(zip(self._rows_R[places].tolist(), found))

    def _look_for_stops(self) -> None:
        """Ends the rows whose newest tokens complete a stop string."""
        new = [choice.tokens_R for _, choice, _ in self._records[self._num_read :]]
        if self._search is None or not new:
            return
        self._num_read = len(self._records)
        over = self._search.read(self._rows_R.tolist(), torch.stack(new).tolist())
        self._going_R = self._going_R & ~torch.tensor(over, device=self._going_R.device)

    def _recorded(self) -> Recorded:
        """Put together once, at the end."""
        shape = (len(self._records), len(self._limits_B))
        rows = [step * shape[1] + rows_R for step, (rows_R, _, _) in enumerate(self._records)]
        place_N = torch.cat(rows)

        def spread(parts: list[Tensor]) -> Tensor:
            flat = torch.zeros(shape, dtype=parts[0].dtype, device=place_N.device).flatten()
            return flat.index_copy(0, place_N, torch.cat(parts)).view(shape).T.contiguous()

        choices = [choice for _, choice, _ in self._records]
        values = [values_R for _, _, values_R in self._records if values_R is not None]
        return Recorded(
            spread([x.tokens_R for x in choices]),
            spread([x.logprobs_R for x in choices]),
            spread([x.entropy_R for x in choices]),
            spread(values) if values else None,
        )
