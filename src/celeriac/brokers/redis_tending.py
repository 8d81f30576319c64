"""Moves delayed messages when they are due, from every process that has delayed some.

Workers of ours do this whenever they receive. Where only stock workers consume, whoever published has to.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from celeriac.brokers.redis_keys import script
from celeriac.errors import BrokerUnavailable

__all__ = ["Tender"]

logger = logging.getLogger("celeriac.redis")

_TEND = script("tend")

#: Seconds between two rounds at least: what is due meanwhile is moved together.
_INTERVAL = 0.05

#: Seconds between two rounds at most, since clocks are set, and other processes delay messages, too.
_LONGEST = 10.0

_BACKOFF = (0.1, 5.0)


class Tender:
    """Tends what is delayed until nothing is.

    Args:
        run: Runs a script with the arguments that all get.
    """

    def __init__(self, run: Callable[..., asyncio.Future[Any]]) -> None:
        self._run = run
        self._task: asyncio.Task[None] | None = None
        self._due = math.inf
        self._sooner = asyncio.Event()

    def expect(self, due: float) -> None:
        """Something was delayed until then, in seconds since the epoch."""
        if due < self._due:
            self._due = due
            self._sooner.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tend())

    async def close(self) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._due = math.inf

    async def _tend(self) -> None:
        delay, longest = _BACKOFF
        while True:
            await self._sleep()
            self._due = math.inf
            try:
                pause = await self._run(_TEND)
            except BrokerUnavailable as exc:
                logger.warning("Delayed messages cannot be moved, trying again in %.1f s: %s", delay, exc)
                self._due = time.time() + delay
                delay = min(delay * 2, longest)
                continue
            delay = _BACKOFF[0]
            if pause:
                # Without a pause when more is due than one round moves.
                wanted = float(pause) and max(float(pause), _INTERVAL)
                self._due = min(self._due, time.time() + wanted)
            elif self._due == math.inf:
                self._task = None
                return

    async def _sleep(self) -> None:
        """Until something is due, or ``expect`` knows of something sooner."""
        while (seconds := min(self._due - time.time(), _LONGEST)) > 0:
            self._sooner.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._sooner.wait()
            except TimeoutError:
                return
