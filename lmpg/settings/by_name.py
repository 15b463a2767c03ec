"""A table of things by the names that settings call them; each is imported when it is asked for."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


class ByName(UserDict[str, T]):
    """A dict of things, made from where they are: "package.module:attribute" or "package.module".

    Listing the names imports nothing, so `lmpg --help` need not wait for torch.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        super().__init__()
        self.data: dict[str, Any] = dict(places)

    def __getitem__(self, name: str) -> T:
        found = self.data[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = import_module(module)
            found = self.data[name] = getattr(found, attribute) if attribute else found
        return found

    def name_of(self, thing: type) -> str | None:
        """The name of a class in the table, for which none of the others is imported."""
        place = f"{thing.__module__}:{thing.__name__}"
        return next((n for n, found in self.data.items() if found in (thing, place)), None)
