"""Looks closely at what learning has to work with: gradients, and what a run made of its score."""
