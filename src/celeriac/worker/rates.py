"""Rate limits of task types, as Celery's: so many starts in a worker per second, minute or hour, evenly spread.

https://docs.celeryq.dev/en/stable/userguide/tasks.html#Task.rate_limit; like there, a limit is each worker's own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from celeriac.errors import ConfigurationError
from celeriac.worker.compat import parse_rate
from celeriac.worker.coroutines import wait_interruptibly
from celeriac.worker.execution import Execution
from celeriac.worker.fetcher import Slots

__all__ = ["RateLimit", "Rates"]

#: Seconds by which tokens that timers were late for are made up.
_LATE = 0.05


class RateLimit:
    """A bucket with room for one token, filled ``rate`` times a second. Belongs to the running loop."""

    def __init__(self, rate: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval = 1 / rate
        self._due = self._loop.time()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> bool:
        """Take the token if there is one, and nobody has waited for it before."""
        now = self._loop.time()
        if self._waiting or now < self._due:
            return False
        self._due = now + self._interval
        return True

    async def acquire(self) -> None:
        """Wait for a token, in turn."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        self._wait()
        await future

    def change(self, rate: float | None) -> None:
        """Go on at another rate, counted from the last start; ``None`` lets everybody go."""
        interval = 1 / rate if rate else 0.0
        self._due += interval - self._interval if rate else -self._interval
        self._interval = interval
        if self._timer is not None:
            self._timer.cancel()
        self._grant()

    def _wait(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = self._loop.call_at(self._due, self._grant)

    def _grant(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting and (now >= self._due or not self._interval):
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                self._due = max(self._due, now - _LATE) + self._interval
        self._wait()


class Rates:
    """The rate limits of a worker's tasks, and the executions that wait for theirs.

    While an execution waits, its slot is free for other tasks; but no more wait in that way than there are slots, so
    that a worker does not take a whole queue into its memory.
    """

    def __init__(self, slots: Slots, *, disabled: bool = False) -> None:
        self._slots = slots
        self._disabled = disabled
        self._without_slot = 0
        #: By task name. Empty for most workers: look at that first.
        self.limits: dict[str, RateLimit] = {}
        #: What waits.
        self.waiting: set[Execution] = set()

    def read(self, task: Any) -> None:
        """A task's ``rate_limit`` as it is now; what waits already follows it. Raises ConfigurationError."""
        rate = 0.0 if self._disabled else _rate_of(task)
        limit = self.limits.get(task.name)
        if rate > 0 and limit is None:
            self.limits[task.name] = RateLimit(rate)
        elif limit is not None:
            limit.change(rate if rate > 0 else None)
            if rate <= 0:
                del self.limits[task.name]

    async def wait(self, execution: Execution, limit: RateLimit) -> None:
        """Return when it may start. Raises ``execution.stop`` if that comes first."""
        self.waiting.add(execution)
        try:
            if self._without_slot < self._slots.capacity:
                await self._wait_without_slot(execution, limit)
            else:
                await wait_interruptibly(execution, limit.acquire)
        finally:
            self.waiting.discard(execution)

    async def _wait_without_slot(self, execution: Execution, limit: RateLimit) -> None:
        self._without_slot += 1
        self._slots.release()
        has_slot = False
        try:
            await wait_interruptibly(execution, limit.acquire)
            await wait_interruptibly(execution, self._slots.acquire)
            has_slot = True
        finally:
            self._without_slot -= 1
            if not has_slot:
                self._slots.take(1)  # for the little that is left to do; whoever ends it gives it back


def _rate_of(task: Any) -> float:
    try:
        return float(parse_rate(task.rate_limit))
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(
            f"The rate limit of task {task.name} is {task.rate_limit!r}, but has to be a number or like '10/s', "
            "'100/m' or '5/h'."
        ) from None
