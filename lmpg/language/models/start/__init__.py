"""What a policy starts from besides a model: a trained adapter, a vocabulary."""
