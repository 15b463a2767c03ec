"""What is done with a model that was trained: evaluate it, let it write, talk with it."""
