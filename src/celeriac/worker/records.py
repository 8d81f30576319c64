"""What executions write into the store: in order, in batches, and until it has got there."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from celery.utils.log import get_logger

from celeriac.coalesce import Coalescer
from celeriac.errors import StoreUnavailable
from celeriac.stores.base import Store
from celeriac.stores.records import EventDraft, Transition
from celeriac.timing import Now, system_now

__all__ = ["RecordWriter"]

logger = get_logger(__name__)

Entry = Transition | EventDraft

#: Seconds between two attempts at a store that is gone: first, and at most.
_BACKOFF = (0.05, 2.0)


class RecordWriter:
    """Writes transitions and events. What one task writes stays in order. ``now`` is the time that they bear."""

    def __init__(self, store: Store, now: Now = system_now) -> None:
        self.now = now
        self._store = store
        #: Whether the store records anything: if not, there is no need to prepare what it would throw away.
        self.recording = store.records
        self._loop = asyncio.get_running_loop()
        self._coalescer: Coalescer[Entry] = Coalescer(self._flush)

    def add(self, entry: Entry) -> None:
        """Write without waiting; from any thread."""
        if asyncio._get_running_loop() is self._loop:
            self._coalescer.add(entry)
        else:
            self._loop.call_soon_threadsafe(self._coalescer.add, entry)

    def is_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this is the loop that writes."""
        return loop is self._loop

    async def write(self, entry: Entry) -> None:
        """Write, and return when the store has it."""
        await self._coalescer.submit(entry)

    async def drain(self) -> None:
        """Wait until all that was added has been written."""
        await self._coalescer.drain()

    async def _flush(self, entries: Sequence[Entry]) -> None:
        for run in _runs(entries):
            await self._persist(run)

    async def _persist(self, run: Sequence[Entry]) -> None:
        delay, longest = _BACKOFF
        while True:
            try:
                if isinstance(run[0], Transition):
                    await self._store.transition(run)  # type: ignore[arg-type]
                else:
                    await self._store.append_events(run)  # type: ignore[arg-type]
                return
            except StoreUnavailable as exc:
                # Giving up would lose results of tasks that have run; their leases are renewed meanwhile.
                logger.error(
                    "The store does not take %d entries, trying again in %.2f s: %s", len(run), delay, exc
                )
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)


def _runs(entries: Sequence[Entry]) -> Sequence[Sequence[Entry]]:
    """Sort into as few runs of one kind as keep each task's order.

    A task's entry goes into the earliest run of its kind that is not before the task's last entry.
    """
    if all(isinstance(entry, Transition) for entry in entries):
        return [entries]
    runs: list[list[Entry]] = [[], []]  # even: transitions, odd: events
    position: dict[str, int] = defaultdict(int)
    for entry in entries:
        at = position[entry.task_id]
        if (at % 2 == 0) != isinstance(entry, Transition):
            at += 1
        position[entry.task_id] = at
        while len(runs) <= at:
            runs.append([])
        runs[at].append(entry)
    return [run for run in runs if run]
