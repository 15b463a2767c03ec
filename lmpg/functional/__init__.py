"""Formulas of the papers: tensors in, tensors out; no settings, no models, no state."""
