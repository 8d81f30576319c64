"""A task's events on their way to one client, whatever the wire: Server-Sent Events or a WebSocket.

A stream keeps no events of its own. It reads them from the store in pages, at the pace of its client, and sleeps on a
flag in between: a client that comes back with the id of the last event goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from celeriac.errors import StoreUnavailable
from celeriac.fastapi import shutdown
from celeriac.fastapi.alarm import Ring
from celeriac.fastapi.texts import json_of
from celeriac.stores.base import Store, Watch
from celeriac.stores.records import READY_STATES, TaskEvent, TaskRecord

__all__ = ["PAGE", "EventStream", "Told", "open_stream"]

PAGE = 100  # events at most
_FIRST_PAGE = 4  # events, as long as nobody knows how large they are
_HELD = 262_144  # bytes that a page of events should not exceed
_CHUNK = 16_384  # bytes from which on no further event is told in the same breath
_RETRY = 1.0  # seconds between two attempts at a store that is away

_log = logging.getLogger(__name__)


class Told(NamedTuple):
    """One event, as a client is told it. ``data`` is JSON."""

    event: str
    data: str
    id: str | None = None


HEARTBEAT = Told("heartbeat", "null")


class EventStream:
    """One client's way through the events of one task. Iterate over it once, for what to tell next."""

    __slots__ = (
        "_after",
        "_complete",
        "_heartbeat",
        "_limit",
        "_may_end",
        "_over",
        "_page",
        "_record",
        "_sleep",
        "_store",
        "_turned",
        "_watch",
        "ended",
        "task_id",
    )

    def __init__(
        self, store: Store, watch: Watch, record: TaskRecord, after: str | None, heartbeat: float
    ) -> None:
        self.task_id = record.id
        self.ended = False  # whether the client has been told all there is
        self._store = store
        self._watch = watch
        self._heartbeat = heartbeat
        self._after = after
        self._record: TaskRecord | None = record  # not for longer than it is news: it may be large
        self._turned = False  # whether a new state has been told
        self._may_end = False  # and one that ends a task
        self._page: list[TaskEvent] = []  # the next one last
        self._complete = False  # whether the page is all that there was
        self._limit = _FIRST_PAGE
        self._over = False
        self._sleep: asyncio.Timeout | None = None

    async def begin(self) -> None:
        """Read the first page. Raises ValueError when the position is no event id."""
        await self._read()

    def stop(self, _why: object = None) -> None:
        """End the stream as soon as it waits for events: the client has gone, or the server shall."""
        self._over = True
        if self._sleep is not None:
            with contextlib.suppress(RuntimeError):  # it is about to wake by itself
                self._sleep.reschedule(asyncio.get_running_loop().time())

    def forget(self) -> None:
        """Hold no events that have not been told: the client is behind, and they can be read again."""
        self._page = []
        self._complete = False

    async def __aiter__(self) -> AsyncIterator[Sequence[Told]]:
        """The events, some at a time, and ``end`` after the last one; a heartbeat in silence.

        Ends without ``end`` when it is stopped. It outlasts a store that is away: a browser that came back meanwhile
        would get a 503, and give up for good.
        """
        while not self._over:
            try:
                async for told in self._follow():
                    yield told
                return
            except StoreUnavailable as exc:
                _log.warning("the events of task %s cannot be read: %s", self.task_id, exc)
                if exc.permanent:
                    return
            yield (HEARTBEAT,)
            await self._wait(_RETRY)

    async def _follow(self) -> AsyncIterator[Sequence[Told]]:
        end: Told | None = None
        look = True
        while not self._over:
            if look:
                end = await self._look()
            news = self._turned = self._may_end = False
            while told := await self._next():
                news = True
                yield told
                if self._over:
                    return
            # The end is a finished record, read first, and then no new state: the other way round an event gets lost,
            # and a task that is retried is not over. A flag without any event may be a record that was deleted.
            if self._may_end or (end is not None and self._turned) or not (news or look):
                look = True
                continue
            if look and end is not None:
                self.ended = True
                yield (end,)
                return
            look = await self._wait(self._heartbeat) is Ring.TIMEOUT
            if look and not self._over:
                yield (HEARTBEAT,)

    async def _look(self) -> Told | None:
        """The end, if the record says that there is nothing more to come."""
        first, self._record = self._record, None
        if first is not None:
            return _end(first)  # read before the first page was
        self._complete = False  # what was read before may lack what the record knows
        return _end((await self._store.get([self.task_id])).get(self.task_id))

    async def _next(self) -> Sequence[Told]:
        if not self._page:
            if self._complete:
                self._complete = False
                return ()
            await self._read()
        told: list[Told] = []
        size = 0
        while self._page and size < _CHUNK:
            event = self._page.pop()
            told.append(Told(event.kind, json_of(event.data), event.id))
            if event.kind == "state":
                self._turned = True
                self._may_end |= event.data.get("state") in READY_STATES
            size += len(told[-1].data)
        if told:
            self._after = told[-1].id
            # By steps: after some that are small there may be large ones, and there may be many clients.
            self._limit = min(PAGE, 2 * self._limit, max(1, _HELD * len(told) // max(size, 1)))
        return told

    async def _read(self) -> None:
        limit = self._limit
        page = await self._store.events(self.task_id, self._after, limit)
        self._page = list(reversed(page))
        self._complete = 0 < len(page) < limit

    async def _wait(self, seconds: float) -> Ring:
        if self._over:
            return Ring.OVER
        self._limit = min(self._limit, _FIRST_PAGE)  # what is to come may be of another size
        try:
            # No task of its own: there may be many thousand streams. A flag stays up when its wait is cancelled.
            async with asyncio.timeout(seconds) as self._sleep:
                await self._watch.changed()
        except TimeoutError:
            return Ring.OVER if self._over else Ring.TIMEOUT
        finally:
            self._sleep = None
        return Ring.CHANGED


@asynccontextmanager
async def open_stream(
    store: Store, record: TaskRecord, after: str | None, heartbeat: float
) -> AsyncIterator[EventStream]:
    """A stream of the record's events after ``after``, and the watch that it sleeps on; both end with the context.

    Whoever opens it awaits :meth:`EventStream.begin`.
    """
    async with store.watch(record.id) as watch:
        stream = EventStream(store, watch, record, after, heartbeat)
        del record
        with shutdown.on_stop(stream.stop):
            yield stream


def _end(record: TaskRecord | None) -> Told | None:
    if record is not None and not record.ready:
        return None
    return Told("end", json_of({"state": record.state if record else None}))
