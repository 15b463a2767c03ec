"""Parses a name with arguments, as settings hold it: `length(target=200)`."""

from __future__ import annotations

import ast
import json
from typing import Any

from lmpg.settings.section import UserError


def parsed_call(text: str, key: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of `NAME` or `NAME(ARGUMENT=VALUE, …)`; values are literals.

    key: the setting that `text` came from, for messages.
    """
    name, bracket, _ = text.partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f{text[len(name) :]}", mode="eval").body
    except (SyntaxError, ValueError):
        raise UserError(_unreadable(text, key)) from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise UserError(_unreadable(text, key))
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise UserError(f"{key}: {text!r}: arguments are given by name, as in {name}(n=3).")
    return name, {str(k.arg): _literal(k, text, key) for k in call.keywords}


def _unreadable(text: str, key: str) -> str:
    return (
        f"{key}: {text!r} doesn't parse, expected NAME(ARGUMENT=VALUE, …), such as "
        "length(target=200)."
    )


def _literal(keyword: ast.keyword, text: str, key: str) -> Any:
    try:
        value = ast.literal_eval(keyword.value)
        json.dumps(value)
    except (ValueError, TypeError):
        raise UserError(
            f"{key}: {text!r}: the value of {keyword.arg} is {ast.unparse(keyword.value)}, "
            "expected a number, a text in quotes, True, False, None, or a list or dict of these."
        ) from None
    return value
