"""Stages: training on a fixed set of texts or pairs. Each file makes the objective of one kind."""
