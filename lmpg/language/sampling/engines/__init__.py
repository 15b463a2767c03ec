"""Decode engines: who computes the next token's logits, and on which device."""
