"""Text environments: what the policy talks to over several turns; tools are one of them."""
