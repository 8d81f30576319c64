"""How a consumer sleeps until a message may be due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["until_due"]

#: Seconds of sleep at most: when the machine's clock is set, due times move although nothing changes.
_LONGEST_SLEEP = 60.0


async def until_due(
    pause: Callable[[], Awaitable[float]],
    on_change: Callable[[Callable[[], None]], Callable[[], None]],
    timeout: float | None,
) -> None:
    """Sleep until a message may be due, or for ``timeout`` seconds.

    ``pause`` looks and says in how many seconds, as far as is known now, that will be. ``on_change`` has a callback
    called on this loop whenever another look is worth while, and returns what ends that.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    changed = asyncio.Event()
    stop = on_change(changed.set)
    try:
        while True:
            # In this order nothing is missed: a change before the look is seen by it, and one after it sets the
            # event again.
            changed.clear()
            seconds = min(await pause(), _LONGEST_SLEEP)
            if deadline is not None:
                seconds = min(seconds, deadline - loop.time())
            if seconds <= 0:
                return
            try:
                async with asyncio.timeout(seconds):
                    await changed.wait()
            except TimeoutError:
                if deadline is not None and loop.time() >= deadline:
                    return
    finally:
        stop()
