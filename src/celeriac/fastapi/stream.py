"""A task's events as Server-Sent Events.

A stream keeps no events of its own. It reads them from the store in pages, at the pace of its client, and sleeps on a
flag in between: a slow client costs no memory, and one that comes back with ``Last-Event-ID`` goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.sse import ServerSentEvent
from pydantic_core import to_json

from celeriac.errors import StoreUnavailable
from celeriac.fastapi import shutdown
from celeriac.fastapi.alarm import Alarm, Ring
from celeriac.stores.base import Store
from celeriac.stores.records import TaskEvent, TaskRecord

__all__ = ["PAGE", "EventStream", "open_stream"]

PAGE = 100  # events
_FASTAPI_PING = 15.0  # seconds of silence after which FastAPI writes a comment of its own
_RETRY = 1.0  # seconds between two attempts at a store that is away
_STAY_AWAY = 3_600_000  # milliseconds: a browser that does not close on ``end`` shall not be back every 3 s

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EventStream:
    """One client's way through the events of one task: ``page`` has been read, and ends at ``after``."""

    store: Store
    task_id: str
    alarm: Alarm
    heartbeat: float
    page: Sequence[TaskEvent]
    after: str | None

    async def __aiter__(self) -> AsyncIterator[ServerSentEvent]:
        """The events, and ``end`` after the last one. Ends without ``end`` when the server stops.

        It outlasts a store that is away: a browser that came back meanwhile would get a 503, and give up for good.
        """
        while True:
            try:
                async for event in self._follow():
                    yield event
                return
            except StoreUnavailable as exc:
                _log.warning("the events of task %s cannot be read: %s", self.task_id, exc)
                if exc.permanent:
                    return
            yield ServerSentEvent(comment="heartbeat")
            if await self.alarm.wait(_RETRY) is Ring.OVER:
                return

    async def _follow(self) -> AsyncIterator[ServerSentEvent]:
        record: TaskRecord | None = None
        look = True
        while True:
            if look:
                record = (await self.store.get([self.task_id])).get(self.task_id)
            kinds = set()
            async for event in self._unread():
                kinds.add(event.kind)
                yield _sse(event)
            # A new state may be the last. A flag without any event may be a record that was deleted.
            if "state" in kinds or not (kinds or look):
                look = True
                continue
            # The end is a finished record, read first, and then no new state: the other way round an event gets lost.
            if look and (record is None or record.ready):
                yield _end(record)
                return
            ring = await self.alarm.wait(self.heartbeat)
            if ring is Ring.OVER:
                return
            look = ring is Ring.TIMEOUT
            if look and self.heartbeat < _FASTAPI_PING:
                yield ServerSentEvent(comment="heartbeat")

    async def _unread(self) -> AsyncIterator[TaskEvent]:
        page, self.page = self.page, ()
        while True:
            for event in page:
                yield event
                self.after = event.id
            if 0 < len(page) < PAGE:
                return
            page = await self.store.events(self.task_id, self.after, PAGE)
            if not page:
                return


@asynccontextmanager
async def open_stream(
    store: Store, task_id: str, after: str | None, heartbeat: float
) -> AsyncIterator[EventStream]:
    """A stream of the events after ``after``, and the watch that it sleeps on; both end with the context.

    Raises ValueError when ``after`` is no event id.
    """
    async with store.watch(task_id) as watch:
        page = await store.events(task_id, after, PAGE)
        over = shutdown.stopping()
        async with Alarm(watch, over.wait() if over else None) as alarm:
            yield EventStream(store, task_id, alarm, heartbeat, page, after)


def _sse(event: TaskEvent) -> ServerSentEvent:
    return ServerSentEvent(event=event.kind, id=event.id, raw_data=_json(event.data))


def _end(record: TaskRecord | None) -> ServerSentEvent:
    state = record.state if record else None
    return ServerSentEvent(event="end", raw_data=_json({"state": state}), retry=_STAY_AWAY)


def _json(value: Any) -> str:
    # JSON has no NaN; a browser's JSON.parse would throw upon one.
    return to_json(value, inf_nan_mode="null").decode()
