"""The store in this process's memory: for tests, and for an app whose tasks need not outlive it.

Stores of one name share their records, from any thread and any event loop. Nobody polls: whoever writes wakes who
waits.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from celeriac.stores.base import CancellationFeed, Store, Watch, not_open
from celeriac.stores.chords import ChordClaim, ChordPart
from celeriac.stores.flags import Feed, Flag
from celeriac.stores.keys import KeyClaim
from celeriac.stores.memory_records import Change, MemoryRecords
from celeriac.stores.records import (
    EventDraft,
    Gone,
    RecordFilter,
    RecordPage,
    TaskEvent,
    TaskRecord,
    Transition,
)
from celeriac.stores.rows import parse_number, to_event, to_record

__all__ = ["MemoryStore"]

_TRIM_RECORDS = 500


class MemoryStore(Store):
    """The records called ``name``; ``expires`` is in seconds, ``None`` keeps records for ever."""

    def __init__(self, name: str = "", *, expires: float | None = 86_400.0) -> None:
        self.name = name
        self.expires = expires
        self._named = MemoryRecords.named(name)
        self._open = False
        self._flags: set[Flag] = set()

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False
        for flag in self._flags:
            flag.lift()

    @property
    def _records(self) -> MemoryRecords:
        if not self._open:
            raise not_open(f"memory://{self.name}")
        return self._named

    async def transition(self, transitions: Sequence[Transition]) -> None:
        self._records.apply(transitions)

    async def append_events(self, events: Sequence[EventDraft]) -> None:
        self._records.append_events(events)

    async def get(self, task_ids: Sequence[str]) -> Mapping[str, TaskRecord]:
        return {row.task_id: to_record(row) for row in self._records.fetch(task_ids)}

    async def list(self, where: RecordFilter, cursor: str | None = None, limit: int = 50) -> RecordPage:
        before = None if cursor is None else parse_number(cursor, "cursor")
        rows = self._records.page(where, before, limit + 1)
        following = str(rows[limit - 1].number) if len(rows) > limit else None
        return RecordPage([to_record(row) for row in rows[:limit]], following)

    async def events(self, task_id: str, after: str | None = None, limit: int = 1000) -> Sequence[TaskEvent]:
        number = 0 if after is None else parse_number(after, "event id")
        return [
            to_event(id_, task_id, kind, data, at)
            for id_, kind, data, at in self._records.events(task_id, number, limit)
        ]

    @asynccontextmanager
    async def watch(self, task_id: str, *, until_ready: bool = False) -> AsyncIterator[Watch]:
        flag = Flag(until_ready)
        loop = asyncio.get_running_loop()

        def see(change: Change) -> None:
            if flag.concerned(change.kind, change.state):
                _call(loop, flag.lift)

        with self._records.watch(task_id, see):
            self._flags.add(flag)
            try:
                yield flag
            finally:
                self._flags.discard(flag)

    async def request_cancel(self, task_ids: Sequence[str]) -> Collection[str]:
        return self._records.request_cancel(task_ids, self._named.now())

    async def cancelled(self, task_ids: Sequence[str]) -> Collection[str]:
        return self._records.cancelled(task_ids)

    @asynccontextmanager
    async def cancellations(self) -> AsyncIterator[CancellationFeed]:
        feed = Feed()
        loop = asyncio.get_running_loop()
        with self._records.cancellations(lambda task_id: _call(loop, partial(feed.add, [task_id]))):
            yield feed

    async def forget(self, task_ids: Sequence[str]) -> int:
        return self._records.forget(task_ids)

    async def trim(self) -> int:
        records, now = self._records, self._named.now()
        kept = self.chords_kept
        records.chords.trim(None if kept is None else now - kept)
        records.trim_traces(now)
        return 0 if self.expires is None else records.trim(now, self.expires, _TRIM_RECORDS)

    async def gone(self, task_ids: Sequence[str]) -> Mapping[str, Gone]:
        return {gone.task_id: gone for gone in self._records.gone(task_ids)}

    async def claim_key(self, key: str, fingerprint: str, task_id: str, *, expires: float) -> KeyClaim:
        return self._records.claim_key(key, fingerprint, task_id, expires)

    async def release_key(self, key: str, task_id: str) -> None:
        self._records.release_key(key, task_id)

    async def set_chord_size(self, group_id: str, size: int) -> None:
        self._records.chords.set_size(group_id, size)

    async def save_chord_header(self, group_id: str, header: str) -> None:
        self._records.chords.save_header(group_id, header)

    async def extend_chord(self, group_id: str, by: int = 1, token: str | None = None) -> None:
        self._records.chords.extend(group_id, by)

    async def add_chord_parts(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        return self._records.chords.add(parts, self.chord_claim)

    async def claimed_chords(self, group_ids: Sequence[str]) -> Collection[str]:
        return self._records.chords.claimed(group_ids)

    async def finish_chord(self, claim: ChordClaim) -> bool:
        return self._records.chords.finish(claim, self.chord_claim)


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    # A loop that has closed meanwhile has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)
