"""Parts of a rollout that were sampled one after the other, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.sampling.sampler import Samples


def concatenated(parts: Sequence[Samples], pad_token_id: int) -> Samples:
    """All rows of `parts` in their order, as if they had been sampled together."""
    if len(parts) == 1:
        return parts[0]
    inputs = {
        "prompt_ids": _stacked([x.inputs["prompt_ids"] for x in parts], pad_token_id, left=True),
        "prompt_lengths": torch.cat([x.inputs["prompt_lengths"] for x in parts]),
        "response_ids": _stacked([x.inputs["response_ids"] for x in parts], pad_token_id),
        "response_lengths": torch.cat([x.inputs["response_lengths"] for x in parts]),
    }
    values = [x.values_BT for x in parts if x.values_BT is not None]
    return Samples(
        inputs=inputs,
        mask_BT=_stacked([x.mask_BT for x in parts], False),
        logprobs_BT=_stacked([x.logprobs_BT for x in parts], 0),
        entropy_BT=_stacked([x.entropy_BT for x in parts], 0),
        values_BT=_stacked(values, 0) if values else None,
        finished_B=torch.cat([x.finished_B for x in parts]),
    )


def _stacked(parts: list[Tensor], padding: float, left: bool = False) -> Tensor:
    """Rows of different widths as one tensor, padded to the widest."""
    width = max(x.shape[1] for x in parts)
    missing = [width - x.shape[1] for x in parts]
    sides = [(n, 0) if left else (0, n) for n in missing]
    return torch.cat([F.pad(x, side, value=padding) for x, side in zip(parts, sides)])
