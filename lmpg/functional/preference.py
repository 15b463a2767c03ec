"""Losses and figures of preferences: which of two is better."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−log σ(chosen − rejected), the loss of a reward model's two scores (Bradley & Terry 1952;
    arXiv 2203.02155, equation 1 for K = 2); in nats, ln 2 for equal scores."""
    return -F.logsigmoid(chosen - rejected)


def won(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 where the chosen one scores higher, ½ where both score the same, else 0."""
    return ((chosen > rejected).float() + (chosen >= rejected).float()) / 2


def all_comparisons(scores_N: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (higher label, lower label) of every pair with different labels.

    The mean of `won` over them is the area under the ROC curve where labels are 0 and 1.
    """
    higher, lower = (labels_N[:, None] > labels_N[None]).nonzero(as_tuple=True)
    # index_select, not x[index]: its backward is deterministic
    return scores_N.index_select(0, higher), scores_N.index_select(0, lower)
