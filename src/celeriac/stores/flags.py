"""What wakes those who wait on a store, on their own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from celeriac.stores.base import CancellationFeed, Watch
from celeriac.stores.records import READY_STATES

__all__ = ["Feed", "Flag"]


class Flag(Watch):
    """A watch on one task."""

    def __init__(self, until_ready: bool) -> None:
        self._until_ready = until_ready
        self._event = asyncio.Event()

    def concerned(self, kind: str, state: str | None) -> bool:
        """Whether an event of this kind (a ``state`` event: of this state) raises the flag.

        A record that was deleted has come to its end, too: who waits for that would wait for ever.
        """
        return not self._until_ready or kind == "forget" or (kind == "state" and state in READY_STATES)

    def lift(self) -> None:
        """Raise the flag."""
        self._event.set()

    async def changed(self) -> None:
        await self._event.wait()
        self._event.clear()


class Feed(CancellationFeed):
    """The cancelled tasks that one listener has not taken yet."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._event = asyncio.Event()

    def add(self, task_ids: Iterable[str]) -> None:
        """Hand these to the listener."""
        self._ids.update(dict.fromkeys(task_ids))
        if self._ids:
            self._event.set()

    async def next(self) -> Collection[str]:
        await self._event.wait()
        self._event.clear()
        taken, self._ids = self._ids, {}
        return list(taken)
