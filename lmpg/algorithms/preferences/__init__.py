"""The algorithms that learn which answers are better: from a fixed data set, without sampling."""
