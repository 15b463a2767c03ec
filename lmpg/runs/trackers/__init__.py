"""Experiment trackers (wandb, trackio, mlflow …) that show a run's metrics elsewhere, too."""
