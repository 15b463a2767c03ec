"""Sampling of completions from the policy."""
