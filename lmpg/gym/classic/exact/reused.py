"""Surrogates on a batch that was used before: their gradient, once the policy has moved away.

μ sampled the batch; π is where some passes over it have led. Each surrogate's slope with respect
to log π is the credit that it gives, and its mean is held against the gradient of η at π.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lmpg.functional import losses
from lmpg.functional.losses import (
    RatioLevel,
    clipped_surrogate,
    importance_weights,
    sequence_log_ratio,
    soft_gated_surrogate,
)
from lmpg.gym.classic.exact.comparison import CreditOf, Setting
from lmpg.gym.classic.exact.estimators import discounts, log_ratios, whole_returns
from lmpg.gym.classic.exact.exact_values import performance, visitation
from lmpg.gym.classic.exact.gradients import policy_gradient, softmax_policy
from lmpg.gym.classic.exact.sampled_episodes import SampledEpisodes

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def moved(s: Setting, kl: float) -> Setting:
    """μ is the policy of `s`, π the one uphill of it with KL(μ ‖ π) = kl nats per step."""
    ascent_OA = policy_gradient(s.mdp, s.theta_OA, discounted=True)
    visits_S = visitation(s.mdp, s.pi_SA, 1.0)

    def at(step: float) -> tuple[np.ndarray, float]:
        pi_SA = softmax_policy(s.mdp, s.theta_OA + step * ascent_OA)
        kl_S = (s.pi_SA * np.log(s.pi_SA / pi_SA)).sum(1)
        return pi_SA, float(visits_S @ kl_S / visits_S.sum())

    near, far = 0.0, 64.0
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if at(middle)[1] < kl else (near, middle)
    theta_OA = s.theta_OA + near * ascent_OA
    return replace(
        s,
        theta_OA=theta_OA,
        pi_SA=at(near)[0],
        mu_SA=s.pi_SA,
        truth_OA=policy_gradient(s.mdp, theta_OA, discounted=True),
    )


def surrogate_credits_of(s: Setting) -> dict[str, CreditOf]:
    """Name of the loss → its slope, with A = R − η(μ) on every step of an episode."""
    gamma, eta = s.mdp.gamma, performance(s.mdp, s.mu_SA)

    def slope(loss: Loss) -> CreditOf:
        def credit(e: SampledEpisodes) -> Tensor:
            x_NT = log_ratios(e, s.pi_SA, s.mu_SA).requires_grad_()
            A_NT = (whole_returns(e, gamma, eta)[:, :1] * e.mask_NT).contiguous()
            total = (loss(x_NT, A_NT, e.mask_NT) * e.mask_NT).sum()
            return -torch.autograd.grad(total, x_NT)[0] / discounts(e, gamma)

        return credit

    def weighted(level: RatioLevel, cap: float | None) -> Loss:
        return lambda x, A, mask: losses.policy_gradient(
            x, importance_weights(x, mask, level, cap) * A
        )

    return {
        "REINFORCE, A2C: no ratio": slope(lambda x, A, mask: losses.policy_gradient(x, A)),
        "ratio of the whole episode": slope(weighted("sequence", None)),
        "ratio of the step (CPI surrogate)": slope(weighted("token", None)),
        "PPO, GRPO: clip 0.2": slope(lambda x, A, mask: clipped_surrogate(x, A, 0.2, None)),
        "GSPO: clip 0.0003, 0.0004": slope(
            lambda x, A, mask: clipped_surrogate(sequence_log_ratio(x, mask), A, 3e-4, 4e-4)
        ),
        "CISPO: ratio capped at 5": slope(weighted("token", 5.0)),
        "SAPO: soft gate": slope(lambda x, A, mask: soft_gated_surrogate(x, A, 1.0, 1.05)),
    }
