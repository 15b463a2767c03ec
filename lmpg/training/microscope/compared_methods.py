"""The estimators that the microscope compares: the algorithm objects themselves, with names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.algorithms.rloo import RLOO

UNBIASED = "RLOO"
"""The estimator whose mean is the gradient of the expected score: the others' bias is against it.
The other responses' scores do not depend on a response, and `fixed_length` divides by a constant.
"""
CRITIC = "PPO"
"""How the names of those begin that need values."""


def compared_methods(group_size: int, lams: Sequence[float]) -> dict[str, Any]:
    """Name → algorithm, without KL penalty or entropy bonus: the gradient of the score alone.

    Where a name tells no reduction it is `fixed_length`, whose weights depend on no response. lams:
    λ of PPO's GAE, which is not whitened but in the row of the defaults; none leaves PPO out.
    """
    plain = {"kl_coef": 0.0, "reduction": "fixed_length"}
    methods: dict[str, Any] = {
        "REINFORCE, no baseline": REINFORCE(**plain, baseline="none"),
        "REINFORCE, mean of the batch": REINFORCE(**plain, baseline="batch_mean"),
        UNBIASED: RLOO(**plain, group_size=group_size),
        "RLOO: token_mean": RLOO(kl_coef=0.0, group_size=group_size, reduction="token_mean"),
        "REINFORCE++: token_mean": ReinforcePlusPlus(kl_coef=0.0, reduction="token_mean"),
    }
    for name, advantage in (("GRPO", "standardised"), ("GRPO without std", "centred")):
        for reduction in ("token_mean", "sequence_mean", "fixed_length"):
            methods[f"{name}: {reduction}"] = GRPO(
                kl_coef=0.0, group_size=group_size, advantage=advantage, reduction=reduction
            )
    for lam in lams:
        methods[f"{CRITIC}, λ = {lam:g}"] = PPO(**plain, lam=lam, whiten=False)
    if lams:
        methods[f"{CRITIC}, defaults: token_mean"] = PPO(kl_coef=0.0)
    return methods
