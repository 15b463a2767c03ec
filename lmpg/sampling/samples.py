"""What a rollout of a language model yields."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lmpg.models.policy import CausalLMPolicy
from lmpg.sampling.prompts import DistinctPrompts


@dataclass(frozen=True)
class Samples:
    """B responses, prompt-major, with what was recorded while they were sampled (0 in padding).

    finished_B: ended by an EOS token, which is part of the response and a chosen step.
    """

    inputs: dict[str, Tensor]
    mask_BT: Tensor
    logprobs_BT: Tensor
    entropy_BT: Tensor
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
    """What was recorded of all rows, and anything after the end of a row's response; [B, T]."""

    ids_BT: Tensor
    logprobs_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor | None


def recorded_samples(
    recorded: Recorded, limits_B: Tensor, prompts: DistinctPrompts, policy: CausalLMPolicy
) -> Samples:
    """What was recorded, cut after each row's first EOS token or at its limit."""
    ids_BT, values_BT = recorded.ids_BT, recorded.values_BT
    ends_BT = torch.isin(ids_BT, ids_BT.new_tensor(policy.eos_token_ids))
    first_B = torch.where(ends_BT.any(1), ends_BT.int().argmax(1), ids_BT.shape[1])
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
        cut(recorded.entropy_BT),
        None if values_BT is None else cut(values_BT),
        finished_B,
    )
