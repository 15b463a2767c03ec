"""Fields and formulas that several algorithms have in common."""
