"""A Python function as a reward, which runs in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

from lmpg.language.rewards.builtin import REFERENCES
from lmpg.language.rewards.isolated import IsolatedFunction
from lmpg.language.rewards.request import GIVEN, TOLD, RewardReply, RewardRequest
from lmpg.language.rewards.specs import KEY, parsed_spec
from lmpg.settings.section import UserError

IN_CHAT = (
    'it gets each completion as messages, [{"role": "assistant", "content": "…"}], as prompts are '
    "messages too"
)


class FunctionReward:
    """Scores by `FILE.py:NAME`, `package.module:NAME` or a built-in function.

    Each of `workers` processes gets a part of every batch, in the background. sources: path →
    module and text of the local files that they have imported.
    """

    def __init__(self, spec: str, timeout: float, workers: int = 1):
        self.spec = parsed_spec(spec)
        self.name = self.spec.name
        self.qualifier = self.spec.qualifier
        self.sources: dict[str, list[str]] = {}
        self._workers = [IsolatedFunction(self.spec, timeout, self.sources) for _ in range(workers)]
        try:
            self._signature = self._first_start()
            if self.spec.is_builtin:
                self._try_options()
        except BaseException:
            self.close()
            raise

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raises if the function needs a parameter that the data has no column for."""
        columns = list(columns)
        required = self._signature["required"]
        if self.spec.is_builtin:
            for name in required:
                if name not in columns and name not in GIVEN:
                    raise UserError(
                        f"{KEY}: {self.spec.text} compares with the column {name!r}, but the data "
                        f"has only: {', '.join(columns) or 'none'}. {REFERENCES[name]}"
                    )
        refuse_missing_columns(self.spec.text, required, columns)

    def submit(self, request: RewardRequest) -> Callable[[], RewardReply]:
        """Starts scoring, each worker a part; the function returned waits for all of them."""
        available = request.arguments()
        self.check_columns(available)
        arguments = wanted(self._signature, available, self.spec.arguments)
        of_trainer = asked_of_trainer(self._signature, available, request)
        count = len(request.completions)
        size = -(-count // len(self._workers)) or 1
        futures = []
        for number, start in enumerate(range(0, count, size)):
            part = {name: column[start : start + size] for name, column in arguments.items()}
            futures.append(self._workers[number].submit(part, min(size, count - start), of_trainer))
        chat = any(isinstance(text, list) for text in arguments.get("completions", []))
        said = RewardReply(notes=[IN_CHAT] if chat and not self.spec.is_builtin else [])
        return lambda: sum((future.result() for future in futures), said)

    def close(self) -> None:
        """Ends the worker processes."""
        for worker in self._workers:
            worker.close()

    def _first_start(self) -> dict[str, Any]:
        for started in [worker.start() for worker in self._workers]:
            reply = started.result()
            if "error" in reply:
                raise UserError(f"{KEY}: cannot import {self.spec.text}: {reply['error']}")
        return reply

    def _try_options(self) -> None:
        """Options of built-in functions are keyword-only, columns are not; bad ones raise now."""
        options = self._signature["options"]
        for names in ("parameters", "required"):
            left = [name for name in self._signature[names] if name not in options]
            self._signature[names] = left
        nothing: dict[str, list] = {name: [] for name in self._signature["required"]}
        reply = self._workers[0].submit(nothing, 0).result()
        if reply.messages:
            raise UserError(f"{KEY}: {self.spec.text}: {reply.messages[0]}")


def refuse_missing_columns(text: str, required: Iterable[str], columns: Iterable[str]) -> None:
    """Raises if the function `text` requires a parameter that the data has no column for."""
    columns = list(columns)
    for name in required:
        if name in columns or name in (*GIVEN, *TOLD):
            continue
        if name == "completion_steps":
            raise UserError(
                f"{KEY}: {text} has a parameter 'completion_steps', which there is only with "
                "--rewards.process step"
            )
        raise UserError(
            f"{KEY}: {text} has a parameter {name!r}, but the data has no such column. It can have "
            f"any of: {', '.join([*GIVEN, *columns])}; rename it, or give it a default."
        )


def asked_of_trainer(
    signature: dict[str, Any], available: dict[str, list], request: RewardRequest
) -> dict[str, Any] | None:
    """What a function names of `TOLD`, which data may have columns for, and the trainer's state."""
    names = [x for x in TOLD if x in signature["parameters"] and x not in available]
    return {"names": names, "state": request.state} if names else None


def wanted(
    signature: dict[str, Any], available: dict[str, list], fixed: Container[str] = ()
) -> dict[str, list]:
    """What a function gets of all that is available; `fixed` arguments are set already."""
    if signature["keywords"]:
        return {name: column for name, column in available.items() if name not in fixed}
    return {name: x for name, x in available.items() if name in signature["parameters"]}
