"""Records of tasks that the broker has taken while the store was away: written once it is back.

A worker records a task's state; arguments, owner and the time of the call are known to who enqueued it. A first
transition only fills in what is still empty, so that it may come late.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Sequence

from celeriac.errors import StoreUnavailable
from celeriac.stores.base import Store
from celeriac.stores.records import Transition

__all__ = ["LateRecords"]

logger = logging.getLogger("celeriac.publisher")

#: Seconds between two attempts: first, and at most.
_BACKOFF = (0.5, 5.0)

#: Records that wait for the store; of more, the oldest are given up. So are records in one attempt.
_MOST, _BATCH = 50_000, 500


class LateRecords:
    """Writes first transitions when the store can be reached again. Belongs to the loop of its store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Transition] = deque(maxlen=_MOST)
        self._writing: asyncio.Task[None] | None = None

    def add(self, transitions: Iterable[Transition]) -> None:
        """Write these as soon as the store takes them."""
        self._waiting.extend(transitions)
        if self._waiting and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Try once more, and give up what the store does not take."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        with contextlib.suppress(StoreUnavailable):
            while self._waiting:
                await self._write_batch()
        if self._waiting:
            logger.warning("%d enqueued tasks stay without arguments in their records.", len(self._waiting))

    async def _write(self) -> None:
        delay, longest = _BACKOFF
        while self._waiting:
            await asyncio.sleep(delay)
            try:
                while self._waiting:
                    await self._write_batch()
            except StoreUnavailable:
                delay = min(delay * 2, longest)

    async def _write_batch(self) -> None:
        batch = [self._waiting[place] for place in range(min(_BATCH, len(self._waiting)))]
        await self._transition(batch)
        for transition in batch:
            # Others may have been pushed out of the queue meanwhile.
            if self._waiting and self._waiting[0] is transition:
                self._waiting.popleft()

    async def _transition(self, batch: Sequence[Transition]) -> None:
        """Write; what the store refuses for good is given up, and costs no other. Raises StoreUnavailable."""
        try:
            await self._store.transition(batch)
        except StoreUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a store makes of one record, the others have to be written
            if len(batch) == 1:
                logger.warning("Task %s, which was enqueued, was not recorded: %s", batch[0].task_id, exc)
                return
            for each in batch:
                await self._transition([each])
