"""Rows of different lengths as one list of tokens with little padding.

Rows of nearly one length make a block, padded on the right: a token looks back only, so padding
behind it needs no mask. Prompts that several rows share are read once, the responses go on from
them. All of it is planned on the host, where the lengths are known without waiting for a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmpg.language.models.inputs import chosen_steps, uploaded

_SLACK = 6
"""Rows share a block while the shortest lacks at most a sixth of the longest: that fewer blocks
are computed is worth some padding."""
_WORTH_SHARING = 0.08
"""Share of all tokens that reading prompts once must save."""


@dataclass(frozen=True)
class Block:
    """Rows of `width` tokens each, one after the other among all tokens.

    context: where among the tokens of the shared prompts the texts lie that the rows go on from,
    [rows, C]; the last `padding` (None: of no row) are none, padding_RC is True there.
    """

    rows: int
    width: int
    context_RC: Tensor | None = None
    padding_RC: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, padding included."""
        return self.rows * self.width

    @property
    def num_keys(self) -> int:
        """How many tokens a row's last token sees, padding included."""
        return self.width + (0 if self.context_RC is None else self.context_RC.shape[1])

    def to(self, device: torch.device) -> Block:
        """The same with its tensors on `device`."""
        context, padding = (
            None if x is None else uploaded(x, device) for x in (self.context_RC, self.padding_RC)
        )
        return replace(self, context_RC=context, padding_RC=padding)


@dataclass(frozen=True)
class Ragged:
    """All N tokens of a batch that a trunk reads, block by block, the shared prompts first.

    num_shared: how many of them belong to shared prompts. Of each of the M tokens that were chosen:
    `state_M`, where the token before it lies, whose hidden state predicts it; its own id; its slot
    in [B·T].
    """

    ids_N: Tensor
    positions_N: Tensor
    blocks: tuple[Block, ...]
    num_shared: int
    state_M: Tensor
    id_M: Tensor
    slot_M: Tensor

    @classmethod
    def of(cls, inputs: dict[str, Tensor]) -> Ragged:
        """The layout of `inputs`, which lie on the CPU."""
        return _Plan(inputs).ragged()

    @property
    def longest(self) -> int:
        """Most tokens that a text can have, padding included."""
        return max(block.num_keys for block in self.blocks)

    def to(self, device: torch.device) -> Ragged:
        """The same with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: uploaded(value, device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, blocks=tuple(b.to(device) for b in self.blocks), **moved)


@dataclass(frozen=True)
class _Pieces:
    """Stretches of tokens of some rows [K]: from which column on, how many, the first position."""

    row: Tensor
    column: Tensor
    length: Tensor
    position: Tensor


class _Plan:
    """Lays pieces out one after the other."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self._prompt_B, self._response_B = inputs["prompt_lengths"], inputs["response_lengths"]
        self._width = inputs["prompt_ids"].shape[1]
        self._response_ids_BT = inputs["response_ids"]
        self._chosen_BT = chosen_steps(inputs)
        self._ids_BL = torch.cat([inputs["prompt_ids"], inputs["response_ids"]], 1)
        self._blocks: list[Block] = []
        self._tokens: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._placed = 0

    def ragged(self) -> Ragged:
        """The layout, once all pieces are placed."""
        going_B = self._response_B > 0
        before_B, shared = self._placed_prompts(going_B), self._placed
        if shared:
            after_B = self._placed_responses(going_B, before_B)
            last_B = before_B + self._prompt_B - 1
        else:
            start_B = self._placed_rows(going_B)
            last_B = start_B + self._prompt_B - 1
            after_B = last_B + 1
        return self._with_targets(last_B, after_B, shared)

    def _with_targets(self, last_B: Tensor, after_B: Tensor, shared: int) -> Ragged:
        row_M, step_M = self._chosen_BT.nonzero(as_tuple=True)
        empty = [torch.zeros(0, dtype=torch.long)]
        return Ragged(
            ids_N=torch.cat(self._tokens or empty),
            positions_N=torch.cat(self._positions or empty),
            blocks=tuple(self._blocks),
            num_shared=shared,
            state_M=torch.where(step_M == 0, last_B[row_M], after_B[row_M] + step_M - 1),
            id_M=self._response_ids_BT[row_M, step_M],
            slot_M=row_M * self._chosen_BT.shape[1] + step_M,
        )

    def _placed_rows(self, going_B: Tensor) -> Tensor:
        """Whole rows, each with its prompt; where each begins, [B]."""
        row = going_B.nonzero()[:, 0]
        prompt, zero = self._prompt_B[row], torch.zeros_like(row)
        length = prompt + self._response_B[row] - 1
        return self._placed_pieces(_Pieces(row, self._width - prompt, length, zero), len(going_B))

    def _placed_prompts(self, going_B: Tensor) -> Tensor:
        """Prompts that rows share, each once; where each row's begins, [B]. None if that saves
        little."""
        column_P = torch.arange(self._width)
        ids_BP = self._ids_BL[:, : self._width]
        real_BP = torch.where(column_P >= self._width - self._prompt_B[:, None], ids_BP, -1)
        distinct_GP, which_B = torch.unique(real_BP[going_B], dim=0, return_inverse=True)
        length_G = (distinct_GP >= 0).sum(1)
        all_tokens = (self._prompt_B + self._response_B - 1)[going_B].sum()
        saved = self._prompt_B[going_B].sum() - length_G.sum()
        if not saved > _WORTH_SHARING * all_tokens:
            return torch.zeros_like(self._prompt_B)
        rows = going_B.nonzero()[:, 0]
        first_G = torch.full_like(length_G, len(going_B)).scatter_reduce(0, which_B, rows, "amin")
        zero = torch.zeros_like(first_G)
        start_B = self._placed_pieces(
            _Pieces(first_G, self._width - length_G, length_G, zero), len(going_B)
        )
        return torch.zeros_like(start_B).index_copy(0, rows, start_B[first_G[which_B]])

    def _placed_responses(self, going_B: Tensor, before_B: Tensor) -> Tensor:
        """All but the last token of each response; where each begins, [B]."""
        row = (self._response_B > 1).nonzero()[:, 0]
        column = torch.full_like(row, self._width)
        pieces = _Pieces(row, column, self._response_B[row] - 1, self._prompt_B[row])
        return self._placed_pieces(pieces, len(going_B), before_B)

    def _placed_pieces(
        self, pieces: _Pieces, num_rows: int, before_B: Tensor | None = None
    ) -> Tensor:
        """Where the piece of each row begins, [B] (0 where it has none)."""
        start_B = torch.zeros(num_rows, dtype=torch.long)
        order = pieces.length.argsort(stable=True, descending=True)
        for part in order.split(_block_sizes(pieces.length[order].tolist())):
            row, length = pieces.row[part], pieces.length[part]
            width = int(length[0])
            step = torch.arange(width).minimum(length[:, None] - 1)
            self._tokens.append(self._ids_BL[row[:, None], pieces.column[part][:, None] + step])
            self._positions.append(pieces.position[part][:, None] + step)
            start_B[row] = self._placed + torch.arange(len(part)) * width
            self._placed += len(part) * width
            self._blocks.append(self._block(row, width, before_B))
        self._tokens = [x.flatten() for x in self._tokens]
        self._positions = [x.flatten() for x in self._positions]
        return start_B

    def _block(self, row: Tensor, width: int, before_B: Tensor | None) -> Block:
        if before_B is None:
            return Block(len(row), width)
        length_R1 = self._prompt_B[row][:, None]
        step_C = torch.arange(int(length_R1.max()))
        context_RC = before_B[row][:, None] + step_C.minimum(length_R1 - 1)
        padding_RC = step_C >= length_R1
        return Block(len(row), width, context_RC, padding_RC if bool(padding_RC.any()) else None)


def _block_sizes(lengths: list[int]) -> list[int]:
    """How many rows each block has; lengths come in descending order."""
    sizes: list[int] = []
    longest = 0
    for length in lengths:
        if not sizes or longest - length > longest // _SLACK:
            longest = length
            sizes.append(0)
        sizes[-1] += 1
    return sizes
