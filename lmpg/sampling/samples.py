"""What a rollout of a language model yields."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


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
