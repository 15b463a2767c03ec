"""Rows whose environments live in the trainer's process: those that no other one can import."""

from __future__ import annotations

import copy
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from lmpg.language.environments.text_episodes import LATER, Call, Episodes, Result, tried
from lmpg.language.rewards.worker import described
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

if TYPE_CHECKING:
    from lmpg.language.environments.plan import Plan


def _try(plan: Plan) -> None:
    """UserError where an environment cannot be made or called."""
    assert plan.make is not None
    try:
        tried(plan.make)
    except Exception as error:
        raise UserError(f"{plan.key}: cannot make {plan.name}: {described(error)}") from None


class LocalRows:
    """Environments given as objects of Python, or those of built-in worlds; an exception costs the
    row that it comes from."""

    def __init__(self, plan: Plan):
        assert plan.make is not None
        if plan.spec is None:
            _try(plan)
        self._episodes = Episodes(plan.make, self._awaited)
        self._loop: Any = None
        self._timeout = plan.timeout
        if plan.spec is None:
            say_once(
                f"environment {plan.name}: it runs in the trainer's process, where a hang cannot "
                "be cut short (environment.timeout and environment.workers are for one that can "
                "be imported, from a module of its own)"
            )

    def submit(self, calls: list[Call], fresh: bool) -> Future[list[Result]]:
        """What calls, one per row, give; `fresh` ends all earlier episodes first."""
        if fresh:
            self._episodes.forget()
        left, found = copy.deepcopy(calls), list[Result]()
        while left:  # once, unless they are slow
            results = self._episodes.outcomes(left, self._timeout)
            found += [result for result in results if result is not LATER]
            left = left[len(results) - results.count(LATER) :]
        done: Future[list[Result]] = Future()
        done.set_result(found)
        return done

    def close(self) -> None:
        """Ends the episodes."""
        self._episodes.forget()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def _awaited(self, awaitable: Awaitable) -> Any:
        """What something awaitable gives, in a loop of its own thread: a notebook has one already,
        and what an environment opens belongs to the loop that it was opened in."""
        import asyncio  # slow to import, and most environments are not async

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            run = self._loop.run_forever
            self._thread = threading.Thread(target=run, name="environment", daemon=True)
            self._thread.start()

        async def waited() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result()
