"""The wing of language models."""
