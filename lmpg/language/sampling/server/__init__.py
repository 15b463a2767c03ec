"""Responses from vLLM servers: token ids in and out, and weights after each update."""
