"""Prompts of a rollout, each of which goes through the model once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmpg.models.inputs import pad_left


@dataclass(frozen=True)
class DistinctPrompts:
    """Distinct prompts, padded left, their lengths, and which is each row's."""

    ids_PL: Tensor
    lengths_P: Tensor
    prompt_B: Tensor

    @staticmethod
    def of(prompts: list[list[int]], group_size: int, pad: int) -> DistinctPrompts:
        """Of a rollout with `group_size` rows for each prompt, prompt-major."""
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        prompt_B = torch.tensor([distinct[tuple(ids)] for ids in prompts])
        return DistinctPrompts(
            pad_left(list(distinct), pad),
            torch.tensor([len(ids) for ids in distinct]),
            prompt_B.repeat_interleave(group_size),
        )

    def to(self, device: torch.device) -> DistinctPrompts:
        """The same there."""
        parts = self.ids_PL, self.lengths_P, self.prompt_B
        return DistinctPrompts(*(x.to(device) for x in parts))

    def of_rows(self) -> dict[str, Tensor]:
        """Each row's prompt, as a rollout holds it."""
        return {
            "prompt_ids": self.ids_PL.index_select(0, self.prompt_B),
            "prompt_lengths": self.lengths_P.index_select(0, self.prompt_B),
        }
