"""The algorithms that learn from a fixed set of texts, pairs or labelled answers, without sampling.

Their only method is `loss_terms`, one loss for each pair, answer or token.
"""
