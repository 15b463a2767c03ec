"""What a rollout of a language model begins with, and what it yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.language.models.inputs import pad_left
from lmpg.language.models.policy import CausalLMPolicy


@dataclass(frozen=True)
class DistinctPrompts:
    """The distinct prompts of B rows, padded left, with their lengths; row b has prompt_B[b]."""

    ids_PL: Tensor
    lengths_P: Tensor
    prompt_B: Tensor

    @staticmethod
    def of(prompts: list[list[int]], group_size: int, pad: int) -> DistinctPrompts:
        """Those of a rollout with `group_size` rows for each of `prompts`, prompt-major."""
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        prompt_B = torch.tensor([distinct[tuple(ids)] for ids in prompts])
        return DistinctPrompts(
            pad_left(list(distinct), pad),
            torch.tensor([len(ids) for ids in distinct]),
            prompt_B.repeat_interleave(group_size),
        )

    def to(self, device: torch.device) -> DistinctPrompts:
        """The same on `device`."""
        parts = self.ids_PL, self.lengths_P, self.prompt_B
        return DistinctPrompts(*(x.to(device) for x in parts))

    def of_rows(self) -> dict[str, Tensor]:
        """Each row's prompt, as a rollout holds it."""
        return {
            "prompt_ids": self.ids_PL.index_select(0, self.prompt_B),
            "prompt_lengths": self.lengths_P.index_select(0, self.prompt_B),
        }


@dataclass(frozen=True)
class Samples:
    """B responses, prompt-major, with what was recorded while they were sampled (0 in padding).

    Of several turns, inputs has `response_turns` [B, T], 1, 2, … in the policy's own turns and 0 in
    what others wrote between them, which is no part of the mask.
    entropy_BT: None where the engine tells none.
    finished_B: ended by an EOS token, part of the response and of the mask, or by the token
        in which a stop string is complete.
    """

    inputs: dict[str, Tensor]
    mask_BT: Tensor
    logprobs_BT: Tensor
    entropy_BT: Tensor | None
    values_BT: Tensor | None
    finished_B: Tensor

    def rows(self, index: Tensor) -> Samples:
        """The same with only the rows in `index` (int64 [N]), in that order."""

        def picked(x):
            if isinstance(x, dict):
                return {name: picked(value) for name, value in x.items()}
            return None if x is None else x.index_select(0, index.to(x.device))

        return Samples(*(picked(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class Recorded:
    """The record of all rows, [B, T]; what lies after the end of a response is undefined."""

    ids_BT: Tensor
    logprobs_BT: Tensor
    entropy_BT: Tensor | None
    values_BT: Tensor | None


def recorded_samples(
    recorded: Recorded,
    limits_B: Tensor,
    prompts: DistinctPrompts,
    policy: CausalLMPolicy,
    stop_B: Tensor | None = None,
) -> Samples:
    """The record as samples, cut after each row's first EOS token or at its limit.

    stop_B: the index of a token that ends the row just as EOS does, or T and more for none.
    """
    ids_BT, entropy_BT, values_BT = recorded.ids_BT, recorded.entropy_BT, recorded.values_BT
    ends_BT = torch.isin(ids_BT, ids_BT.new_tensor(policy.eos_token_ids))
    first_B = torch.where(ends_BT.any(1), ends_BT.int().argmax(1), ids_BT.shape[1])
    if stop_B is not None:
        first_B = torch.minimum(first_B, stop_B.to(first_B.device))
    finished_B = first_B < limits_B
    lengths_B = torch.where(finished_B, first_B + 1, limits_B)
    num_steps = int(lengths_B.max())
    mask_BT = torch.arange(num_steps, device=lengths_B.device) < lengths_B[:, None]

    def cut(x_BT: Tensor, padding: int = 0) -> Tensor:
        return x_BT[:, :num_steps].masked_fill(~mask_BT, padding)

    response = {"response_ids": cut(ids_BT, policy.pad_token_id), "response_lengths": lengths_B}
    return Samples(
        prompts.of_rows() | response,
        mask_BT,
        cut(recorded.logprobs_BT),
        None if entropy_BT is None else cut(entropy_BT),
        None if values_BT is None else cut(values_BT),
        finished_B,
    )


def concatenated(parts: Sequence[Samples], pad_token_id: int) -> Samples:
    """All rows of `parts` in their order, as if they had been sampled together."""
    if len(parts) == 1:
        return parts[0]
    inputs = {
        "prompt_ids": stacked([x.inputs["prompt_ids"] for x in parts], pad_token_id, left=True),
        "prompt_lengths": torch.cat([x.inputs["prompt_lengths"] for x in parts]),
        "response_ids": stacked([x.inputs["response_ids"] for x in parts], pad_token_id),
        "response_lengths": torch.cat([x.inputs["response_lengths"] for x in parts]),
    }
    if "response_turns" in parts[0].inputs:
        inputs["response_turns"] = stacked([x.inputs["response_turns"] for x in parts], 0)
    values = [x.values_BT for x in parts if x.values_BT is not None]
    entropies = [x.entropy_BT for x in parts if x.entropy_BT is not None]
    return Samples(
        inputs=inputs,
        mask_BT=stacked([x.mask_BT for x in parts], False),
        logprobs_BT=stacked([x.logprobs_BT for x in parts], 0),
        entropy_BT=stacked(entropies, 0) if entropies else None,
        values_BT=stacked(values, 0) if values else None,
        finished_B=torch.cat([x.finished_B for x in parts]),
    )


def stacked(parts: list[Tensor], padding: float, left: bool = False) -> Tensor:
    """The rows of all parts, [rows] or [rows, width], padded to the widest."""
    if parts[0].ndim == 1:
        return torch.cat(parts)
    width = max(x.shape[1] for x in parts)
    missing = [width - x.shape[1] for x in parts]
    sides = [(n, 0) if left else (0, n) for n in missing]
    return torch.cat([F.pad(x, side, value=padding) for x, side in zip(parts, sides)])
