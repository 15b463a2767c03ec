"""Data: from the rows of a data set to prompts, texts and pairs of token ids, split and ordered."""
