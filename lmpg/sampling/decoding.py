"""The state of one batch: the R rows still going, and the record of all B rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmpg.models.fused_trunk import moved
from lmpg.models.inputs import pad_left
from lmpg.models.policy import CausalLMPolicy
from lmpg.sampling.choice import Choice, chosen
from lmpg.sampling.samples import Samples


class Trunk(Protocol):
    """Hidden states after the last token of rows, from a cache that it keeps."""

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts and opens rows, [R, D]."""
        ...

    def advance(self, tokens_R: Tensor) -> Tensor:
        """Appends a token to each row, [R, D]."""
        ...

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`, the first num_rows go on."""
        ...


@dataclass(frozen=True)
class Engine:
    """What turns tokens into logits [R, V] (float32, temperature applied) and values [R].

    drop_share: the share of finished rows from which it pays to let them leave.
    """

    trunk: Trunk
    logits: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], Tensor] | None
    precision: Callable[[], AbstractContextManager]
    drop_share: float


class Decoding:
    """One batch being sampled: `choose` and `advance` in turns, then `samples`."""

    def __init__(
        self,
        engine: Engine,
        policy: CausalLMPolicy,
        prompts: list[list[int]],
        group_size: int,
        limits_B: Tensor,
    ):
        self._engine, self._pad, device = engine, policy.pad_token_id, policy.device
        self._eos = torch.tensor(policy.eos_token_ids, device=device)
        self._limits_R = self._limits_B = limits_B.to(device)
        self._first_limit = int(limits_B.min())
        self._rows_R = torch.arange(len(limits_B), device=device)
        self._going_R = torch.ones(len(limits_B), dtype=torch.bool, device=device)
        self._records: list[tuple[Tensor, Choice, Tensor | None]] = []
        self._prefill(prompts, group_size)

    def _prefill(self, prompts: list[list[int]], group_size: int) -> None:
        """Each distinct prompt goes through the model once; all its rows share the result."""
        device = self._eos.device
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        ids_PL = pad_left(list(distinct), self._pad).to(device)
        lengths_P = torch.tensor([len(ids) for ids in distinct], device=device)
        prompt_B = torch.tensor([distinct[tuple(ids)] for ids in prompts], device=device)
        prompt_B = prompt_B.repeat_interleave(group_size)
        self._hidden_RD = self._engine.trunk.prefill(ids_PL, lengths_P, prompt_B)

    def choose(self, uniforms_B: Tensor | None, top_k: int, top_p: float) -> None:
        """The next token of every row still going, and what is recorded of it."""
        engine, rows_R = self._engine, self._rows_R
        uniforms_R = None if uniforms_B is None else uniforms_B.index_select(0, rows_R)
        choice = chosen(engine.logits(self._hidden_RD), uniforms_R, top_k, top_p)
        values_R = None if engine.values is None else engine.values(self._hidden_RD)
        self._records.append((rows_R, choice, values_R))
        self._tokens_R = choice.tokens_R
        self._going_R = self._going_R & ~self._ends(choice.tokens_R)
        if len(self._records) >= self._first_limit:
            self._going_R &= self._limits_R > len(self._records)

    def _ends(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, self._eos)

    def drop_finished(self) -> bool:
        """Finished rows leave the batch when they are many enough; False when none goes on."""
        going_R, num_rows = self._going_R, len(self._going_R)
        num_going = int(going_R.sum())
        finished = num_rows - num_going
        if num_going and finished <= num_rows * self._engine.drop_share:
            return True
        holes = (~going_R[:num_going]).nonzero()[:, 0]
        tail = going_R[num_going:].nonzero()[:, 0] + num_going
        for name in ("_rows_R", "_limits_R", "_tokens_R", "_going_R"):
            setattr(self, name, moved(getattr(self, name), holes, tail, num_going))
        self._engine.trunk.keep(holes, tail, num_going)
        return num_going > 0

    def advance(self) -> None:
        """Feed the chosen tokens to the model."""
        self._hidden_RD = self._engine.trunk.advance(self._tokens_R)

    def samples(self, prompts: list[list[int]], group_size: int) -> Samples:
        """What was recorded, cut after each row's first EOS token or at its limit."""
        ids_BT, logprobs_BT, entropy_BT, values_BT = self._recorded()
        ends_BT = self._ends(ids_BT)
        first_B = torch.where(ends_BT.any(1), ends_BT.int().argmax(1), ids_BT.shape[1])
        finished_B = first_B < self._limits_B
        lengths_B = torch.where(finished_B, first_B + 1, self._limits_B)
        num_steps = int(lengths_B.max())
        mask_BT = torch.arange(num_steps, device=lengths_B.device) < lengths_B[:, None]

        def cut(x_BT: Tensor, padding: int = 0) -> Tensor:
            return x_BT[:, :num_steps].masked_fill(~mask_BT, padding)

        prompts = [ids for ids in prompts for _ in range(group_size)]
        inputs = {
            "prompt_ids": pad_left(prompts, self._pad).to(mask_BT.device),
            "prompt_lengths": torch.tensor([len(ids) for ids in prompts], device=mask_BT.device),
            "response_ids": cut(ids_BT, self._pad),
            "response_lengths": lengths_B,
        }
        return Samples(
            inputs,
            mask_BT,
            cut(logprobs_BT),
            cut(entropy_BT),
            None if values_BT is None else cut(values_BT),
            finished_B,
        )

    def _recorded(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Tokens, log-probs, entropy and values as [B, T], put together once at the end."""
        shape = (len(self._records), len(self._limits_B))
        rows = [step * shape[1] + rows_R for step, (rows_R, _, _) in enumerate(self._records)]
        place_N = torch.cat(rows)

        def spread(parts: list[Tensor]) -> Tensor:
            flat = torch.zeros(shape, dtype=parts[0].dtype, device=place_N.device).flatten()
            return flat.index_copy(0, place_N, torch.cat(parts)).view(shape).T.contiguous()

        choices = [choice for _, choice, _ in self._records]
        values = [values_R for _, _, values_R in self._records if values_R is not None]
        return (
            spread([x.tokens_R for x in choices]),
            spread([x.logprobs_R for x in choices]),
            spread([x.entropy_R for x in choices]),
            spread(values) if values else None,
        )
