"""``--autoscale=max,min``: as many slots as there is work for.

https://docs.celeryq.dev/en/stable/userguide/workers.html#autoscaling. A worker grows when it is full and messages
wait, and shrinks to what it has used when that was less for ``AUTOSCALE_KEEPALIVE`` seconds (30).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from celery.utils.log import get_logger

from celeriac.errors import BrokerUnavailable
from celeriac.worker.compat import AUTOSCALE_KEEPALIVE, CeleryAutoscaler
from celeriac.worker.fetcher import Slots
from celeriac.worker.pool import TaskPool

__all__ = ["Autoscaler", "create_autoscaler"]

logger = get_logger(__name__)

#: Seconds between two looks at a worker that has not become full.
_LOOK = 1.0


def create_autoscaler(pool: Any, max_concurrency: int, min_concurrency: int = 0, **options: Any) -> Any:
    """The autoscaler for the pool that was chosen: ours, and Celery's own for Celery's pools (``-P processes``)."""
    if isinstance(pool, TaskPool):
        return Autoscaler(pool, max_concurrency, min_concurrency)
    return CeleryAutoscaler(pool, max_concurrency, min_concurrency, **options)


class Autoscaler:
    """Changes the size of a pool between two bounds, on the worker's event loop.

    ``keepalive`` is how many seconds slots stay that nobody needs.
    """

    def __init__(
        self,
        pool: TaskPool,
        max_concurrency: int,
        min_concurrency: int,
        keepalive: float = AUTOSCALE_KEEPALIVE,
    ) -> None:
        self.pool = pool
        self.max_concurrency = max_concurrency
        self.min_concurrency = min_concurrency
        self.keepalive = keepalive
        self._changed: Callable[[], None] = lambda: None

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:  # noqa: A002 - Celery's names
        """Set new bounds, from any thread; slots follow at once. Returns both."""
        self.max_concurrency = self.max_concurrency if max is None else int(max)
        self.min_concurrency = self.min_concurrency if min is None else int(min)
        self._changed()
        return self.max_concurrency, self.min_concurrency

    def info(self) -> dict[str, int]:
        """What ``inspect stats`` shows."""
        return {
            "max": self.max_concurrency,
            "min": self.min_concurrency,
            "current": self.pool.limit,
            "qty": self._qty(),
        }

    def start(self) -> None:
        """Nothing: the worker runs it."""

    def stop(self) -> None:
        """Nothing: it ends with the worker's loop."""

    terminate = stop

    def _qty(self) -> int:
        return 0

    async def run(
        self, slots: Slots, waiting: Callable[[], Awaitable[int]], resize: Callable[[int], None]
    ) -> None:
        """Scale for ever. ``waiting`` tells how many messages wait, ``resize`` adds slots or takes some away."""
        loop = asyncio.get_running_loop()
        self._qty = lambda: slots.used  # type: ignore[method-assign]
        self._changed = lambda: loop.call_soon_threadsafe(slots.filled.set)  # type: ignore[assignment]
        most, since = slots.used, time.monotonic()
        while True:
            slots.filled.clear()
            size = self.pool.limit
            most = max(most, slots.used)
            if slots.used >= size and size < self.max_concurrency:
                size += await _count(waiting)
            elif time.monotonic() - since > self.keepalive:
                size, most, since = most, slots.used, time.monotonic()
            self._resize(size, resize)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slots.filled.wait(), _LOOK)

    def _resize(self, size: int, resize: Callable[[int], None]) -> None:
        size = max(1, self.min_concurrency, min(size, self.max_concurrency))
        by = size - self.pool.limit
        if by:
            logger.info("Scaling %s %d slots.", "up" if by > 0 else "down", abs(by))
            resize(by)


async def _count(waiting: Callable[[], Awaitable[int]]) -> int:
    try:
        return await waiting()
    except BrokerUnavailable:
        return 0  # who receives says it
