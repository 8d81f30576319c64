"""The store in an SQL database: Celery's own result table with columns added, and a log of events."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from celery import states
from sqlalchemy.engine import Connection

from celeriac.errors import BrokerUnavailable, StoreUnavailable
from celeriac.sql import chords, event_log, gone, groups, keys, marks, records
from celeriac.sql.database import Database
from celeriac.sql.transitions import apply_transitions
from celeriac.stores.base import CancellationFeed, Store, Watch, not_open
from celeriac.stores.chord_batches import PartBatches
from celeriac.stores.chords import REMEMBERED, ChordClaim, ChordPart
from celeriac.stores.entries import to_claims, to_entries, to_event_rows, to_part_rows
from celeriac.stores.keys import KeyClaim
from celeriac.stores.records import (
    EventDraft,
    Gone,
    RecordFilter,
    RecordPage,
    TaskEvent,
    TaskRecord,
    Transition,
)
from celeriac.stores.rows import (
    CANCELLED,
    Row,
    error_of,
    micros,
    moment,
    parse_number,
    search_parts,
    to_event,
    to_record,
)
from celeriac.stores.scans import Scans
from celeriac.stores.tail import Tail

__all__ = ["SQLStore"]

T = TypeVar("T")

#: What one ``trim`` deletes or looks at, at most, so that it never holds the write lock for long.
_TRIM_RECORDS = 500
_TRIM_EVENTS = 5000
_TRIM_CHORDS = 100
_TRIM_TRACES = 5000

#: Seconds that an event without a record is left for those who still read the log.
_ORPHAN_AGE = 3600.0


class SQLStore(Store):
    """Records in the database at ``url``; ``expires`` is in seconds, ``None`` keeps records for ever."""

    def __init__(self, url: str, *, expires: float | None = 86_400.0) -> None:
        self.url = url
        self.expires = expires
        self._database = Database.shared(url)
        self._scans = Scans(url)
        self._tail: Tail | None = None
        self._lookup: _Lookup | None = None
        self._parts = PartBatches(self._add_parts, lambda: self.chord_claim)
        self._lock = asyncio.Lock()
        self._orphans_after = 0

    async def open(self) -> None:
        async with self._lock:
            if self._tail is None:
                with _store_errors():
                    await self._database.open()
                self._tail = Tail(self._database)

    async def close(self) -> None:
        async with self._lock:
            if self._tail is not None:
                await self._parts.drain()
                tail, self._tail = self._tail, None
                await self._scans.close()
                await self._database.close()
                tail.release()

    async def transition(self, transitions: Sequence[Transition]) -> None:
        entries = to_entries(transitions)
        await self._write(lambda connection: apply_transitions(connection, entries))

    async def append_events(self, events: Sequence[EventDraft]) -> None:
        rows = to_event_rows(events)
        await self._write(lambda connection: records.append_events(connection, rows))

    async def get(self, task_ids: Sequence[str]) -> Mapping[str, TaskRecord]:
        rows = await self._rows(task_ids)
        return {task_id: to_record(rows[task_id]) for task_id in task_ids if task_id in rows}

    async def _rows(self, task_ids: Iterable[str]) -> Mapping[str, Row]:
        self._opened()
        # What is asked for in one tick of the loop is one query.
        lookup = self._lookup
        if lookup is None:
            lookup = self._lookup = _Lookup()
            asyncio.get_running_loop().call_soon(self._send_lookup, lookup)
        lookup.task_ids.update(task_ids)
        with _store_errors():
            return await asyncio.shield(lookup.future)

    def _send_lookup(self, lookup: _Lookup) -> None:
        self._lookup = None
        try:
            found = self._database.read(lambda connection: records.fetch(connection, lookup.task_ids))
        except BrokerUnavailable as exc:
            lookup.future.set_exception(exc)
            return
        found.add_done_callback(lookup.finish)

    async def list(self, where: RecordFilter, cursor: str | None = None, limit: int = 50) -> RecordPage:
        before = None if cursor is None else parse_number(cursor, "cursor")
        equal = {"status": where.state, "name": where.name, "queue": where.queue, "owner": where.owner}
        equal = {column: value for column, value in equal.items() if value is not None}

        def read(connection: Connection) -> builtins.list[builtins.list[Any]]:
            return records.page(
                connection,
                equal,
                since=None if where.since is None else where.since.timestamp(),
                until=None if where.until is None else where.until.timestamp(),
                search=search_parts(where.search) if where.search else (),
                before=before,
                limit=limit + 1,
            )

        self._opened()
        with _store_errors():
            rows = [Row(*row) for row in await self._scans.read(read)]
        following = str(rows[limit - 1].number) if len(rows) > limit else None
        return RecordPage([to_record(row) for row in rows[:limit]], following)

    async def events(self, task_id: str, after: str | None = None, limit: int = 1000) -> Sequence[TaskEvent]:
        number = 0 if after is None else parse_number(after, "event id")
        rows = await self._read(lambda connection: records.events(connection, task_id, number, limit))
        return [to_event(*row) for row in rows]

    @asynccontextmanager
    async def watch(self, task_id: str, *, until_ready: bool = False) -> AsyncIterator[Watch]:
        async with AsyncExitStack() as stack:
            with _store_errors():
                flag = await stack.enter_async_context(self._opened().flag(task_id, until_ready=until_ready))
            yield flag

    async def request_cancel(self, task_ids: Sequence[str]) -> Collection[str]:
        now = time.time()
        return await self._write(
            lambda connection: records.request_cancel(
                connection, task_ids, now, result=CANCELLED, error=error_of(states.REVOKED, CANCELLED)
            )
        )

    async def cancelled(self, task_ids: Sequence[str]) -> Collection[str]:
        return await self._read(lambda connection: records.cancelled(connection, task_ids))

    @asynccontextmanager
    async def cancellations(self) -> AsyncIterator[CancellationFeed]:
        async with AsyncExitStack() as stack:
            with _store_errors():
                feed = await stack.enter_async_context(self._opened().feed())
            yield feed

    async def forget(self, task_ids: Sequence[str]) -> int:
        now = time.time()
        return await self._write(lambda connection: records.forget(connection, task_ids, now))

    async def trim(self) -> int:
        now = time.time()
        trimmed, kept = 0, self.expires
        if kept is not None:
            trimmed = await self._write(
                lambda connection: event_log.trim_records(connection, now, kept, _TRIM_RECORDS)
            )
        await self._write(lambda connection: gone.trim(connection, now, _TRIM_TRACES))
        await self._write(lambda connection: keys.trim(connection, now, _TRIM_TRACES))
        await self._write(lambda connection: marks.trim(connection, now, _TRIM_TRACES))
        after = self._orphans_after
        self._orphans_after = await self._write(
            lambda connection: event_log.trim_orphans(connection, now - _ORPHAN_AGE, after, _TRIM_EVENTS)
        )
        await self._trim_chords(now)
        return trimmed

    async def _trim_chords(self, now: float) -> None:
        before = None if self.chords_kept is None else now - self.chords_kept
        done_before = now - REMEMBERED
        await self._write(lambda connection: chords.trim(connection, done_before, before, _TRIM_CHORDS))
        if self.expires is not None:
            groups_before = now - self.expires
            await self._write(lambda connection: groups.trim(connection, groups_before))

    async def gone(self, task_ids: Sequence[str]) -> Mapping[str, Gone]:
        now = time.time()
        found = await self._read(lambda connection: gone.fetch(connection, task_ids, now))
        return {each.task_id: Gone(each.task_id, each.owner, moment(micros(each.at))) for each in found}

    async def claim_key(self, key: str, fingerprint: str, task_id: str, *, expires: float) -> KeyClaim:
        now = time.time()
        held = await self._write(
            lambda connection: keys.claim(connection, key, fingerprint, task_id, now, expires)
        )
        new = (held.task_id, held.fingerprint) == (task_id, fingerprint)
        return KeyClaim(held.task_id, held.fingerprint, moment(micros(held.at)), new)

    async def release_key(self, key: str, task_id: str) -> None:
        await self._write(lambda connection: keys.release(connection, key, task_id))

    async def set_chord_size(self, group_id: str, size: int) -> None:
        now = time.time()
        await self._write(lambda connection: chords.set_size(connection, group_id, size, now))

    async def save_chord_header(self, group_id: str, header: str) -> None:
        now = time.time()
        await self._write(lambda connection: groups.save(connection, group_id, header, now))

    async def extend_chord(self, group_id: str, by: int = 1, token: str | None = None) -> None:
        now = time.time()
        await self._write(lambda connection: chords.extend(connection, group_id, by, now))

    async def add_chord_parts(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        self._opened()
        return await self._parts.add(parts)

    async def _add_parts(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        now, claim_for = time.time(), self.chord_claim
        rows = to_part_rows(parts)
        return to_claims(
            await self._write(lambda connection: chords.add_parts(connection, rows, now, claim_for))
        )

    async def claimed_chords(self, group_ids: Sequence[str]) -> Collection[str]:
        now = time.time()
        return await self._read(lambda connection: chords.claimed(connection, group_ids, now))

    async def finish_chord(self, claim: ChordClaim) -> bool:
        now = time.time()
        return await self._write(
            lambda connection: chords.finish(connection, claim.group_id, claim.token, now)
        )

    def _opened(self) -> Tail:
        if self._tail is None:
            raise not_open(self.url)
        return self._tail

    async def _write(self, operation: Callable[[Connection], T]) -> T:
        tail = self._opened()
        with _store_errors():
            result = await self._database.write(operation)
        tail.poke()  # who waits in this process need not wait for the look at the change counter
        return result

    async def _read(self, operation: Callable[[Connection], T]) -> T:
        self._opened()
        with _store_errors():
            return await self._database.read(operation)


class _Lookup:
    """Records that several callers want, and the answer for all of them."""

    def __init__(self) -> None:
        self.task_ids: set[str] = set()
        self.future: asyncio.Future[Mapping[str, Row]] = asyncio.get_running_loop().create_future()
        # Everybody may have given up waiting by the time that it fails.
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())

    def finish(self, found: asyncio.Future[builtins.list[builtins.list[Any]]]) -> None:
        if found.cancelled():
            self.future.cancel()
        elif (exc := found.exception()) is not None:
            self.future.set_exception(exc)
        else:
            rows = (Row(*row) for row in found.result())
            self.future.set_result({row.task_id: row for row in rows})


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except BrokerUnavailable as exc:
        error = StoreUnavailable(str(exc))
        error.permanent, error.why = exc.permanent, exc.why
        raise error from exc
