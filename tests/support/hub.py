"""What the Hub has, without the Hub: its cache, filled by hand."""

from __future__ import annotations

import pytest
from huggingface_hub import constants


def cached_on_the_hub(
    place, name: str, revisions: dict[str, object], patch: pytest.MonkeyPatch
) -> None:
    """Puts folders into a cache of the Hub's at `place`, as the revisions of the model `name`, and
    lets libraries look there alone. revisions: name of a branch or tag → function that fills a
    folder."""
    root = place / f"models--{name.replace('/', '--')}"
    for number, (revision, fill) in enumerate(revisions.items(), 1):
        commit = str(number) * 40
        (root / "snapshots" / commit).mkdir(parents=True)
        fill(root / "snapshots" / commit)  # type: ignore[operator]
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(commit)
    patch.setattr(constants, "HF_HUB_CACHE", str(place))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
