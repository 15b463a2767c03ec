"""Rows of a data set → prompts, texts and pairs in token ids."""
