"""What the built-in worlds are about: sums, and a grammar of reviews."""
