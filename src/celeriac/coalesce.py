"""Make one call of many: what is submitted in one tick of the loop, or while a call is under way, goes in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Coalescer"]

logger = logging.getLogger("celeriac")

T = TypeVar("T")

_Waiter = asyncio.Future[None] | None


class Coalescer(Generic[T]):
    """Hands batches to ``flush``, one call at a time, in the order of submission.

    ``limit`` bounds a batch. When ``flush`` raises, each item of the batch is flushed alone, so that nobody pays for
    a neighbour's mistake; ``flush`` has to be all or nothing for that.
    """

    def __init__(self, flush: Callable[[Sequence[T]], Awaitable[object]], *, limit: int = 1000) -> None:
        self._flush = flush
        self._limit = limit
        self._items: list[tuple[T, _Waiter]] = []
        self._runner: asyncio.Task[None] | None = None

    def submit(self, item: T) -> asyncio.Future[None]:
        """Add an item; the future is done when it has been flushed. Cancelling it does not take the item back."""
        # Each has its own: cancelling one who waits on a shared future would cancel its neighbours.
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(item, waiter)
        return waiter

    def add(self, item: T) -> None:
        """Add an item that nobody waits for; an error is logged."""
        self._add(item, None)

    @property
    def backlog(self) -> int:
        """How many items no flush has begun with."""
        return len(self._items)

    async def drain(self) -> None:
        """Wait until everything submitted so far has been flushed, well or not."""
        while self._runner is not None:
            await asyncio.wait([self._runner])

    def _add(self, item: T, waiter: _Waiter) -> None:
        self._items.append((item, waiter))
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._items:
            items, self._items = self._items, []
            for start in range(0, len(items), self._limit):
                await self._flush_batch(items[start : start + self._limit])
        self._runner = None

    async def _flush_batch(self, batch: Sequence[tuple[T, _Waiter]]) -> None:
        try:
            await self._flush([item for item, _ in batch])
        except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
            if len(batch) > 1:
                for pair in batch:
                    await self._flush_batch([pair])
            else:
                _fail(*batch[0], exc)
            return
        for _, waiter in batch:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


def _fail(item: object, waiter: _Waiter, error: Exception) -> None:
    if waiter is None:
        logger.error("%r was not written: %s", item, error, exc_info=error)
    elif not waiter.done():
        waiter.set_exception(error)
