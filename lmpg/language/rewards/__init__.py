"""Rewards: what scores responses, as functions in worker processes or as reward models."""
