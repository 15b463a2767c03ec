"""Learning, whatever the rollouts or data come from."""
