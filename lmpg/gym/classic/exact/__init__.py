"""Finite problems without sampling: every expectation is a sum that is carried out.

float64 arrays; S states, A actions, O observations. A policy is its probabilities pi_SA. In what
follows γ is the `FiniteMDP`'s; with γ = 1 the episode must end under the policy.
"""
