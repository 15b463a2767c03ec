"""A run's folder and what it tells: checkpoints, logs, reports."""
