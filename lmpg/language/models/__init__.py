"""Policy, critic, reference and reward model around transformers' models."""
