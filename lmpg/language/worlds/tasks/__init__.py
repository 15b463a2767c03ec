"""Tasks of the built-in worlds: they write problems and texts, and score answers; no models."""
