"""JSON schemas of tools, from their signatures and docstrings; made once for a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmpg.language.rewards.worker import load


def schemas_of(tools: list[Callable]) -> list[dict[str, Any]]:
    """A schema per tool; ValueError or TypeError that says what is missing in which."""
    from transformers.utils import get_json_schema  # slow to import

    found = []
    for tool in tools:
        name = getattr(tool, "__name__", type(tool).__name__)
        try:
            found.append(get_json_schema(tool))
        except Exception as error:
            raise ValueError(
                f"{name} cannot be described ({' '.join(str(error).split())}); give each of its "
                "parameters a type, and say what it is for in a docstring with a block Args:"
            ) from None
    names = [schema["function"]["name"] for schema in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two tools are called {twice[0]}; rename one")
    return found


def serving(
    hello: dict[str, Any], load_: Callable[[str], Callable] = load, *_: Any
) -> tuple[Callable[[], dict], Callable[[dict], dict]]:
    """What a worker process replies first: the schemas, for which alone it is started."""

    def start() -> dict[str, Any]:
        from transformers.utils import chat_template_utils

        # else it imports torch, for tools that take audio: seconds, and some hundred megabytes
        chat_template_utils.is_torch_available = lambda: False
        return {"schemas": schemas_of([load_(tool) for tool in hello["arguments"]["tools"]])}

    return start, dict
