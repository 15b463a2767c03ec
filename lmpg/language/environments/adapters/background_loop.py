"""An event loop in a thread of its own, which goes on between the turns of episodes."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any


async def in_background(function: Callable[[], Any]) -> Any:
    """What a function, called in the background's loop, gives once it is awaited.

    A connection is kept alive there, and a program goes on, while the policy is sampled.
    """

    async def called() -> Any:
        result = function()
        return await result if isinstance(result, Awaitable) else result

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(called(), _loop()))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="environments", daemon=True).start()
    return loop
