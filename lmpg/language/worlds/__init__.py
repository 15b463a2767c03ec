"""The built-in worlds: each makes a model, data and rewards of its own, from nothing."""
