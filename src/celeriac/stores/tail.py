"""Who waits for which task, and one reader of the event log that wakes them all.

Nobody polls. When the database has changed, one query reads what is new in the log; ten thousand waiters cost as many
queries as one. While nobody waits there is no query.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from celeriac.errors import BrokerUnavailable
from celeriac.sql import event_log
from celeriac.sql.database import Database
from celeriac.stores.flags import Feed, Flag

__all__ = ["Tail"]

logger = logging.getLogger("celeriac.stores")

_PAGE = 5000  # events

#: Up to so many watched tasks are picked out by the database; for more it is cheaper to look at every event.
_FEW = 256


class _LogFlag(Flag):
    """A flag that counts what comes after a position in the log, which it may learn later than the event."""

    def __init__(self, until_ready: bool) -> None:
        super().__init__(until_ready)
        self._since: int | None = None
        self._latest = 0

    def begin(self, position: int) -> None:
        """Count what comes after this position, whether it has been seen already or not."""
        self._since = position
        if self._latest > position:
            self.lift()

    def see(self, change: event_log.Change) -> None:
        """Raise the flag if this event concerns it."""
        if not self.concerned(change.kind, change.state):
            return
        self._latest = max(self._latest, change.id)
        if self._since is not None and change.id > self._since:
            self.lift()


class Tail:
    """The waiters of one loop on one database. All methods belong to that loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._flags: defaultdict[str, list[_LogFlag]] = defaultdict(list)
        self._feeds: list[Feed] = []
        self._position: int | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._look: asyncio.Future[int] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._again = False

    @asynccontextmanager
    async def flag(self, task_id: str, *, until_ready: bool) -> AsyncIterator[Flag]:
        """A flag for what happens to the task from now on."""
        flag = _LogFlag(until_ready)
        self._flags[task_id].append(flag)
        try:
            flag.begin(await self._begin())
            yield flag
        finally:
            self._flags[task_id].remove(flag)
            if not self._flags[task_id]:
                del self._flags[task_id]
            self._end_if_alone()

    @asynccontextmanager
    async def feed(self) -> AsyncIterator[Feed]:
        """A feed of what is cancelled from now on."""
        feed = Feed()
        self._feeds.append(feed)
        try:
            await self._begin()
            yield feed
        finally:
            self._feeds.remove(feed)
            self._end_if_alone()

    def poke(self) -> None:
        """Read what is new, if anybody waits."""
        if not (self._flags or self._feeds) or self._position is None:
            return
        if self._reader is not None:
            self._again = True
        else:
            self._reader = asyncio.get_running_loop().create_task(self._read())

    def release(self) -> None:
        """Wake everybody, so that they find out for themselves what has become of the store."""
        for flags in self._flags.values():
            for flag in flags:
                flag.lift()

    async def _begin(self) -> int:
        """The end of the log now. What comes after it will be seen."""
        if self._unsubscribe is None:
            self._unsubscribe = self._database.on_change(self.poke)
        if self._look is None or self._look.done():
            # One look serves everybody who comes before it has been answered.
            self._look = asyncio.ensure_future(self._database.read(event_log.end))
        position = await asyncio.shield(self._look)
        if self._position is None and (self._flags or self._feeds):
            self._position = position
            self.poke()  # for changes that were announced before there was a position to read from
        return position

    def _end_if_alone(self) -> None:
        if self._flags or self._feeds:
            return
        self._position = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    async def _read(self) -> None:
        try:
            while self._position is not None:
                self._again = False
                after = self._position
                watched = list(self._flags) if len(self._flags) <= _FEW else None
                read = partial(event_log.changes, after=after, task_ids=watched, limit=_PAGE)
                changes, position = await self._database.read(read)
                if self._position is not None:
                    self._position = position
                self._dispatch(changes)
                if not self._again and len(changes) < _PAGE:
                    break
        except BrokerUnavailable as exc:
            logger.warning("Changes of tasks cannot be read: %s", exc)
            self.release()
        finally:
            self._reader = None

    def _dispatch(self, changes: list[event_log.Change]) -> None:
        cancelled = [change.task_id for change in changes if change.kind == "cancel" and change.task_id]
        for feed in self._feeds:
            feed.add(cancelled)
        for change in changes:
            for flag in self._flags.get(change.task_id or "", ()):
                flag.see(change)
