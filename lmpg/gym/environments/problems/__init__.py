"""Small environments whose right answers are known, registered as `lmpg/NAME-v0`."""

from __future__ import annotations

import gymnasium

_HERE = "lmpg.gym.environments.problems"
PROBLEMS: dict[str, tuple[str, int | None]] = {  # name: (where its class is, time limit)
    "OneStateChain": ("chains:OneStateChain", None),
    "ThreeStateChain": ("chains:ThreeStateChain", 100),
    "CyclicChain": ("chains:CyclicChain", 8),
    "RandomWalk": ("chains:RandomWalk", None),
    "Corridor": ("aliased:Corridor", 1000),
    "AliasedGridworld": ("aliased:AliasedGridworld", 1000),
    "Bandit": ("bandit:Bandit", None),
    "RockPaperScissors": ("rock_paper_scissors:RockPaperScissors", None),
    "LQR": ("lqr:LQR", 10),
    "Puck": ("puck:Puck", 200),
    "Gait": ("gait:Gait", None),
}


def register_problems() -> None:
    """Make every problem known to gymnasium; again is harmless."""
    for name, (place, limit) in PROBLEMS.items():
        env_id = f"lmpg/{name}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, f"{_HERE}.{place}", max_episode_steps=limit)
