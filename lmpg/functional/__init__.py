"""Formulas: tensors in, tensors out."""
