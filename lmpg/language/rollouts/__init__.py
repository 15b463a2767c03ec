"""From prompts to a rollout: generate, score, process scores, assemble."""
