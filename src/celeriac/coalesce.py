"""Make one call of many: what is submitted in one tick of the loop, or while a call is under way, goes in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Coalescer"]

T = TypeVar("T")


class Coalescer(Generic[T]):
    """Hands batches to ``flush``, one call at a time, in the order of submission.

    ``limit`` bounds a batch. An exception of ``flush`` goes to everyone whose item was in that batch.
    """

    def __init__(self, flush: Callable[[Sequence[T]], Awaitable[object]], *, limit: int = 1000) -> None:
        self._flush = flush
        self._limit = limit
        self._items: list[T] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._runner: asyncio.Task[None] | None = None

    def submit(self, item: T) -> asyncio.Future[None]:
        """Add an item; the future is done when it has been flushed. Cancelling it does not take the item back."""
        self.add(item)
        # Each has its own: cancelling one who waits on a shared future would cancel its neighbours.
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def add(self, item: T) -> None:
        """Add an item that nobody waits for; ``flush`` says what went wrong with it."""
        self._items.append(item)
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._items:
            items, self._items = self._items, []
            waiters, self._waiters = self._waiters, []
            error: Exception | None = None
            for start in range(0, len(items), self._limit):
                try:
                    await self._flush(items[start : start + self._limit])
                except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
                    error = exc
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error) if error else waiter.set_result(None)
        self._runner = None

    async def drain(self) -> None:
        """Wait until everything submitted so far has been flushed, well or not."""
        while self._runner is not None:
            await asyncio.wait([self._runner])
