"""Built-in worlds: tasks with a model, data and rewards of their own, made from nothing."""
