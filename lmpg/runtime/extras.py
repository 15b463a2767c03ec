"""Libraries that are not always installed, and what to do where one is missing."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from lmpg.settings.section import UserError


def bitsandbytes_for(setting: str) -> Any:
    """The library bitsandbytes; UserError, which names the `setting` that needs it, without it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it offers kernels on the Hub
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError:
        raise UserError(
            f"{setting} needs bitsandbytes, which is not installed: pip install "
            "'lmpg[bitsandbytes]', or leave the setting out"
        ) from None
