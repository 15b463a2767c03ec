"""Losses of preferences: which of two answers is better, or whether one alone is good.

`chosen` is the preferred one of a pair. z: by how many nats the model prefers it to the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PairLoss = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "conservative",
    "robust",
    "apo_zero",
    "apo_down",
    "bco_pair",
    "sppo_hard",
    "nca_pair",
    "odds_ratio",
    "sft",
]


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


def apo_zero_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """σ(−r_chosen) + σ(r_rejected) of the rewards βΔ: the chosen answer is to become likelier than
    under the reference, the rejected one less likely (arXiv 2408.06266, equation 7)."""
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """σ(r_chosen) + σ(r_rejected − r_chosen) of the rewards βΔ: both answers are to become less
    likely, the rejected one most, where the reference is better than either (arXiv 2408.06266,
    equation 8)."""
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def bco_loss(reward: Tensor, desirable: Tensor, shift: Tensor | float) -> Tensor:
    """−log σ(r − δ) where desirable, −log σ(δ − r) where not: a classifier whose logit is the
    reward r = βΔ less the shift δ, the mean reward (arXiv 2404.04656)."""
    gain = reward - shift
    return -F.logsigmoid(torch.where(desirable, gain, -gain))


def bco_pair_loss(chosen: Tensor, rejected: Tensor, shift: Tensor | float) -> Tensor:
    """`bco_loss` of a desirable answer and of an undesirable one, added up."""
    return -F.logsigmoid(chosen - shift) - F.logsigmoid(shift - rejected)


def sppo_hard_loss(delta_2N: Tensor, *, beta: float) -> Tensor:
    """(Δ_chosen − 1/(2β))² + (Δ_rejected + 1/(2β))²: equation 4.7 of arXiv 2405.00675 where the
    chosen answer always wins; 1/β is η there."""
    return (delta_2N[0] - 0.5 / beta).square() + (delta_2N[1] + 0.5 / beta).square()


def nca_pair_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−log σ(r_chosen) − ½ log σ(−r_chosen) − ½ log σ(−r_rejected) of the rewards βΔ: noise
    contrast, which keeps the chosen answer's likelihood from falling (arXiv 2402.05369, K = 2)."""
    noise = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return -F.logsigmoid(chosen) - noise / 2


def log_odds(mean_logprob: Tensor) -> Tensor:
    """log(p / (1 − p)) of p = e^(mean log-prob), below 1 by 1e-7 at least so that it is finite."""
    below_0 = mean_logprob.clamp(max=-1e-7)
    return below_0 - torch.log(-torch.expm1(below_0))


def odds_ratio_loss(mean_logprobs_2N: Tensor) -> Tensor:
    """−log σ(log odds of the chosen answer − those of the rejected one), of mean log-probs per
    token without a reference: ORPO's second term (arXiv 2403.07691, equation 7)."""
    return -F.logsigmoid(log_odds(mean_logprobs_2N[0]) - log_odds(mean_logprobs_2N[1]))


def pair_loss(
    loss: PairLoss,
    delta_2N: Tensor,
    mean_logprobs_2N: Tensor,
    *,
    beta: float,
    gamma: float,
    smoothing: float,
    shift: Tensor | float,
) -> Tensor:
    """The named loss of N pairs, row 0 of the chosen answers, row 1 of the rejected ones.

    delta_2N: Δ. mean_logprobs_2N: log π per token, of which odds_ratio and sft are. γ is taken from
    β(Δ_chosen − Δ_rejected), shift is BCO's δ.
    """
    difference = delta_2N[0] - delta_2N[1]
    z, (chosen, rejected) = beta * difference - gamma, beta * delta_2N
    return {
        "sigmoid": lambda: sigmoid_loss(z),
        "ipo": lambda: ipo_loss(difference, beta=beta),
        "hinge": lambda: hinge_loss(z),
        "conservative": lambda: conservative_loss(z, smoothing=smoothing),
        "robust": lambda: robust_loss(z, smoothing=smoothing),
        "apo_zero": lambda: apo_zero_loss(chosen, rejected),
        "apo_down": lambda: apo_down_loss(chosen, rejected),
        "bco_pair": lambda: bco_pair_loss(chosen, rejected, shift),
        "sppo_hard": lambda: sppo_hard_loss(delta_2N, beta=beta),
        "nca_pair": lambda: nca_pair_loss(chosen, rejected),
        "odds_ratio": lambda: odds_ratio_loss(mean_logprobs_2N),
        "sft": lambda: -mean_logprobs_2N[0],
    }[loss]()


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
