"""Losses of preferences: which of two answers is better, or whether one alone is good.

`chosen` is the preferred one of a pair. z: by how many nats the model prefers it to the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PairLoss = Literal["sigmoid", "ipo", "hinge", "conservative", "robust"]


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """−log σ(chosen − rejected − margin), the loss of a reward model's two scores (Bradley & Terry
    1952; arXiv 2203.02155, equation 1 for K = 2; the margin: arXiv 2307.09288, equation 2); in
    nats, ln 2 for equal scores."""
    return -F.logsigmoid(chosen - rejected - margin)


def off_centre(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(chosen + rejected)², 0 where both scores lie evenly around 0 (arXiv 2312.09244)."""
    return (chosen + rejected).square()


def sigmoid_loss(z: Tensor) -> Tensor:
    """−log σ(z): DPO for z = β(Δ_chosen − Δ_rejected) (arXiv 2305.18290, equation 7), SimPO for
    the difference of mean log-probs times β, less γ (arXiv 2405.14734, equation 6)."""
    return -F.logsigmoid(z)


def conservative_loss(z: Tensor, *, smoothing: float) -> Tensor:
    """−(1 − ε) log σ(z) − ε log σ(−z): the labels are wrong with probability ε (cDPO; arXiv
    2403.00409, equation 6). Least at σ(z) = 1 − ε."""
    return (1 - smoothing) * sigmoid_loss(z) + smoothing * sigmoid_loss(-z)


def robust_loss(z: Tensor, *, smoothing: float) -> Tensor:
    """(−(1 − ε) log σ(z) + ε log σ(−z)) / (1 − 2ε): over labels that are wrong with probability ε
    its mean is the loss of the true ones (arXiv 2403.00409, equation 12)."""
    mixed = (1 - smoothing) * sigmoid_loss(z) - smoothing * sigmoid_loss(-z)
    return mixed / (1 - 2 * smoothing)


def hinge_loss(z: Tensor) -> Tensor:
    """max(0, 1 − z) (arXiv 2305.10425, 2309.06657)."""
    return F.relu(1 - z)


def ipo_loss(difference: Tensor, *, beta: float) -> Tensor:
    """(Δ_chosen − Δ_rejected − 1/(2β))², Δ the mean per token (arXiv 2310.12036, equation 17)."""
    return (difference - 1 / (2 * beta)).square()


def pair_loss(
    difference: Tensor, loss: PairLoss, beta: float, gamma: float, smoothing: float
) -> Tensor:
    """The named loss of Δ_chosen − Δ_rejected, with z = β(Δ_chosen − Δ_rejected) − γ."""
    z = beta * difference - gamma
    if loss == "ipo":
        return ipo_loss(difference, beta=beta)
    if loss == "hinge":
        return hinge_loss(z)
    if loss == "conservative":
        return conservative_loss(z, smoothing=smoothing)
    if loss == "robust":
        return robust_loss(z, smoothing=smoothing)
    return sigmoid_loss(z)


def kto_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    kl_baseline: Tensor,
    *,
    beta: float,
    weights: tuple[float, float],
) -> Tensor:
    """λ_D(1 − σ(β(Δ − z))) where desirable, λ_U(1 − σ(β(z − Δ))) where not (arXiv 2402.01306,
    equation 8); z, the KL baseline, gets no gradient. weights: (λ_D, λ_U). In [0, λ]."""
    gain = beta * (log_ratio - kl_baseline.detach())
    return torch.where(
        desirable, weights[0] * torch.sigmoid(-gain), weights[1] * torch.sigmoid(gain)
    )


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 where the chosen one scores higher, ½ where both score the same, else 0."""
    return ((chosen > rejected).float() + (chosen >= rejected).float()) / 2


def pairs_by_label(scores_N: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (higher label, lower label) of every pair with different labels.

    The mean of `pair_accuracy` over them is the area under the ROC curve where labels are 0 and 1.
    """
    higher, lower = (labels_N[:, None] > labels_N[None]).nonzero(as_tuple=True)
    # index_select, not x[index]: its backward is deterministic
    return scores_N.index_select(0, higher), scores_N.index_select(0, lower)
