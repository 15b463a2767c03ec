"""Reward functions that no other process can import: closures, lambdas, methods, what a notebook or
a REPL defines. They run in the trainer's process."""

from __future__ import annotations

import copy
import dis
import functools
import importlib.util
import inspect
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from lmpg.language.rewards import builtin
from lmpg.language.rewards.functions import (
    IN_CHAT,
    asked_of_trainer,
    refuse_missing_columns,
    wanted,
)
from lmpg.language.rewards.request import RewardReply, RewardRequest, reply_of
from lmpg.language.rewards.results.trainer_arguments import trainer_arguments
from lmpg.language.rewards.specs import KEY, unsendable
from lmpg.language.rewards.worker import SIGNALS, answer, described, signature
from lmpg.language.rewards.worker_process import plain
from lmpg.settings.section import UserError

HERE = (
    "it runs in the trainer's process, where a hang cannot be cut short (rewards.timeout and "
    "rewards.workers are for functions that can be imported, from a module of their own)"
)
_SCALARS = (str, bytes, int, float, bool, type(None))
_UNREAD = ("__module__", "__doc__", "__qualname__", "__firstlineno__")  # of classes


class LocalFunction:
    """Scores by a function of this process; an exception costs the sample that it comes from.

    text: what settings call it. Its arguments are copies, as a worker process would get them.
    """

    def __init__(self, function: Callable, text: str):
        self.function, self.text = function, text
        self.name = self.qualifier = name_of(function)
        try:
            self._signature = signature(function, {})
        except (TypeError, ValueError) as error:
            raise UserError(f"{KEY}: {self.name} cannot be called: {error}") from None

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raises if the function needs a parameter that the data has no column for."""
        refuse_missing_columns(self.name, self._signature["required"], columns)

    def submit(self, request: RewardRequest) -> Callable[[], RewardReply]:
        """It scores when the reply is asked for."""
        return functools.partial(self.reply, request)

    def reply(self, request: RewardRequest) -> RewardReply:
        """One score per response; sample by sample where they fail together."""
        available = request.arguments()
        self.check_columns(available)
        arguments = self._plain(wanted(self._signature, available))
        count = len(request.completions)
        chat = any(isinstance(text, list) for text in arguments.get("completions", []))
        said = RewardReply(notes=[HERE, *([IN_CHAT] if chat else [])])
        of_trainer = asked_of_trainer(self._signature, available, request)
        reply, failure = self._called(arguments, count, of_trainer)
        if failure is None or count <= 1:
            return said + reply
        alone = RewardReply()
        for i in range(count):
            alone += self._called({name: [x[i]] for name, x in arguments.items()}, 1, of_trainer)[0]
        if None not in alone.scores:
            alone.notes.append(
                f"the batch of {count} failed ({failure}), but each sample alone has a score; "
                "batches are scored one by one as long as that is so, which is slow"
            )
        return said + alone

    def close(self) -> None:
        """Nothing to end."""

    def _called(
        self, arguments: dict[str, list], count: int, wanted_of_trainer: dict[str, Any] | None
    ) -> tuple[RewardReply, str | None]:
        """The reply to one call; if it failed as a whole, one without scores, and why."""
        try:
            more, logs = trainer_arguments(wanted_of_trainer, count)
            given = {**copy.deepcopy(arguments), **more}
            found = {**answer(self.function, given, count, _awaited), **logs}
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and str(error.code) in SIGNALS:
                raise
            found = {"error": described(error)}
        if "error" in found:
            messages = [found["error"]] if count == 1 else []
            return RewardReply([None] * count, messages), found["error"]
        return reply_of(found), None

    def _plain(self, arguments: dict[str, list]) -> dict[str, list]:
        """The arguments as JSON has them: a function gets the same wherever it runs."""
        found = {}
        for name, column in arguments.items():
            try:
                found[name] = json.loads(json.dumps(column, default=plain))
            except TypeError as error:
                raise UserError(unsendable(self.name, name, error)) from None
        return found


def importable(function: Callable) -> str | None:
    """What settings call a function that a worker process can import, None where none can.

    What the program that runs defines itself cannot be: importing it would run the program again.
    Nor can what a module defines that is still being imported, since it has called lmpg itself.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or not name.isidentifier() or module == "__main__":
        return None
    loaded = sys.modules.get(module)
    if getattr(loaded, name, None) is not function:
        return None
    if getattr(getattr(loaded, "__spec__", None), "_initializing", False):
        return None
    if module == builtin.__name__:
        return name
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return f"{module}:{name}" if found and found.origin and Path(found.origin).is_file() else None


def name_of(function: Callable) -> str:
    """What metrics call a function."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name


def fingerprint(function: Callable) -> str:
    """What is known of a function, class or environment: its source and the plain values that a
    function reads from around it, but for those that it changes, or that an environment holds.
    What other objects hold is unknown."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isclass(function):
        return _of_class(function)
    if not callable(function):  # an environment that is made already
        held = {k: x for k, x in vars(function).items() if isinstance(x, _SCALARS)}
        return json.dumps([_of_class(type(function)), sorted(held.items())], default=repr)
    called = function if inspect.isroutine(function) else type(function).__call__
    called = inspect.unwrap(getattr(called, "__func__", called))
    code = getattr(called, "__code__", None)
    try:
        source = inspect.getsource(called)
    except (OSError, TypeError):  # a REPL keeps none
        source = repr(_compiled(code)) if code else repr(called)
    captured = _read_from_around(called) if inspect.isfunction(called) else {}
    return json.dumps([source, sorted(captured.items())], default=repr)


def _of_class(kind: type) -> str:
    """The methods and plain values of a class, and of those of its module that it is made from."""
    found = []
    for part in (x for x in kind.__mro__ if x.__module__ == kind.__module__):
        for name, value in sorted(vars(part).items()):
            value = getattr(value, "__func__", value)  # of a class method
            if inspect.isfunction(value):
                found.append([part.__qualname__, name, fingerprint(value)])
            elif isinstance(value, _SCALARS) and name not in _UNREAD:
                found.append([part.__qualname__, name, repr(value)])
    return json.dumps(found)


def _read_from_around(function: FunctionType) -> dict[str, Any]:
    """The plain values that a function reads of the variables of functions around it and of its
    module, those that it sets left out."""
    steps = list(_instructions(function.__code__))
    read = {x.argval for x in steps if x.opname == "LOAD_GLOBAL"}
    written = {x.argval for x in steps if x.opname in ("STORE_DEREF", "STORE_GLOBAL")}
    around = {k: x for k, x in function.__globals__.items() if k in read}
    around |= inspect.getclosurevars(function).nonlocals
    return {k: x for k, x in around.items() if k not in written and isinstance(x, _SCALARS)}


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Those of a function and of the functions, lambdas and comprehensions inside it."""
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _instructions(inner)


def _compiled(code: CodeType) -> tuple[Any, ...]:
    """Instructions, names and constants of a function, of those inside it too."""
    constants = [_compiled(x) if isinstance(x, CodeType) else repr(x) for x in code.co_consts]
    return code.co_code, code.co_names, constants


def _awaited(result: Awaitable) -> Any:
    """The result of an async function, in a thread of its own: a notebook's has a loop already."""
    import asyncio  # slow to import, and most functions are not async

    async def waited() -> Any:
        return await result

    found: list[Any] = []

    def run() -> None:
        try:
            found.append((asyncio.run(waited()), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run, name="reward")
    thread.start()
    thread.join()
    value, error = found[0]
    if error is not None:
        raise error
    return value
