"""Every random draw comes from (run.seed, purpose, step), so that resuming needs no RNG state."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by all parts of `key`, e.g. `generator(seed, "sample", step)`."""
    digest = hashlib.sha256("\x00".join(map(repr, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
