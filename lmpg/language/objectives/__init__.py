"""Objectives: what the offline loop asks of a model about texts, pairs or labelled completions.

An objective runs the model and hands numbers to the loss of its algorithm.
"""
