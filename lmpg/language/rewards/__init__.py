"""Scores of completions: functions in worker processes, reward models."""
