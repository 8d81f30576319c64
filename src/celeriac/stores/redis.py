"""The store in Redis: Celery's own result keys, and records, events and indexes beside them."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from celeriac.errors import StoreUnavailable
from celeriac.redis.link import Link
from celeriac.redis.scripts import Script
from celeriac.redis.server import Server
from celeriac.stores import redis_keys
from celeriac.stores import redis_layout as layout
from celeriac.stores.base import CancellationFeed, Store, Watch, not_open
from celeriac.stores.chord_batches import PartBatches
from celeriac.stores.chords import ChordClaim, ChordPart
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
from celeriac.stores.redis_chords import ChordTimes, RedisChords
from celeriac.stores.redis_errors import store_errors
from celeriac.stores.redis_list import Listing
from celeriac.stores.redis_lookup import Lookup
from celeriac.stores.redis_rows import Kept, news, stock_step, to_redis_event, to_redis_record
from celeriac.stores.redis_watch import Watchers
from celeriac.stores.rows import parse_number

__all__ = ["RedisStore"]

T = TypeVar("T")

logger = logging.getLogger("celeriac.stores")

#: Records that one script reads, and transitions that one applies, at most, so that others have their turn.
_READ = 250
_WRITTEN = 1000

#: What one slice of a clean-up looks at, and how many slices one clean-up has at most.
_TRIMMED, _COMPARED = 200, 500
_TRIM_SLICES = 50

#: Seconds between two clean-ups that a store does by itself, where no worker does them.
_TRIM_PAUSE = 60.0


class RedisStore(Store):
    """Records in the Redis server at ``url``.

    ``expires`` is in seconds, ``None`` keeps records for ever; ``options`` are Celery's
    ``result_backend_transport_options``. Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self, url: str, *, expires: float | None = 86_400.0, options: Mapping[str, Any] | None = None
    ) -> None:
        self.expires = expires
        self._server = Server.from_url(url, options)
        self._prefix = layout.key_prefix(options or {})
        self._chords = RedisChords(self._prefix, options or {})
        self._parts = PartBatches(self._add_parts, lambda: self.chord_claim)
        self._link: Link | None = None
        self._watchers: Watchers | None = None
        self._lookup: Lookup | None = None
        self._trimming: asyncio.Task[None] | None = None
        self._trim_at = 0.0

    async def open(self) -> None:
        if self._link is None:
            self._link = Link.shared(self._server)
            self._watchers = Watchers(self._link, self._prefix)
            self._trim_at = time.monotonic() + _TRIM_PAUSE
            await self._link.open()

    async def close(self) -> None:
        link, self._link = self._link, None
        watchers, self._watchers = self._watchers, None
        trimming, self._trimming = self._trimming, None
        if watchers is not None:
            await watchers.close()
        if trimming is not None:
            trimming.cancel()
            await asyncio.wait([trimming])
        if link is not None:
            await link.close()
        await self._parts.drain()

    async def transition(self, transitions: Sequence[Transition]) -> None:
        # Nothing may be awaited before this has been sent: it travels with what the broker sends in the same tick.
        if transitions:
            await self._run_slices(
                layout.TRANSITION,
                [
                    layout.transition_arguments(self._prefix, self.expires, part)
                    for part in _slices(transitions)
                ],
            )
            self._tidy_now_and_then()

    async def append_events(self, events: Sequence[EventDraft]) -> None:
        slices = [layout.append_arguments(self._prefix, part) for part in _slices(events)]
        await self._run_slices(layout.APPEND, slices)

    async def get(self, task_ids: Sequence[str]) -> Mapping[str, TaskRecord]:
        if not task_ids:
            self._opened()
            return {}
        found = await self._look_up(task_ids)
        records = {
            task_id: to_redis_record(task_id, found[task_id]) for task_id in task_ids if task_id in found
        }
        return {task_id: record for task_id, record in records.items() if record is not None}

    async def _look_up(self, task_ids: Iterable[str]) -> Mapping[str, Kept]:
        self._opened()
        # What is asked for in one tick of the loop is one question.
        lookup = self._lookup
        if lookup is None:
            lookup = self._lookup = Lookup(asyncio.get_running_loop())
            lookup.loop.call_soon(self._send_lookup, lookup)
        lookup.task_ids.update(dict.fromkeys(task_ids))
        return await asyncio.shield(lookup.future)

    def _send_lookup(self, lookup: Lookup) -> None:
        self._lookup = None
        lookup.follow(lookup.loop.create_task(self._read(list(lookup.task_ids))))

    async def _read(self, task_ids: Sequence[str]) -> dict[str, Kept]:
        """What is kept of these tasks, after it has taken in what stock workers have written."""
        found = await self._read_as_is(task_ids)
        stock = {task_id: sha for task_id, kept in found.items() if (sha := news(kept))}
        if stock:
            await self._adopt({task_id: found[task_id].written or b"" for task_id in stock}, stock)
            found |= await self._read_as_is(list(stock))
        return found

    async def _read_as_is(self, task_ids: Sequence[str]) -> dict[str, Kept]:
        slices = [[self._prefix, *part] for part in _slices(task_ids, _READ)]
        answers = await self._run_slices(layout.GET, slices)
        found = (each for answer in answers for each in answer)
        return {task_id: Kept(*each) for task_id, each in zip(task_ids, found, strict=True) if each}

    async def _adopt(self, texts: Mapping[str, bytes], stock: Mapping[str, str]) -> None:
        """Have records say what stock workers have written."""
        steps = [stock_step(task_id, text) for task_id, text in texts.items()]
        arguments = layout.transition_arguments(self._prefix, self.expires, steps, stock)
        try:
            await self._run(layout.TRANSITION, arguments)
        except StoreUnavailable as exc:
            # Who reads gets to know it all the same.
            logger.warning("What stock workers have written was not recorded: %s", exc)

    async def list(self, where: RecordFilter, cursor: str | None = None, limit: int = 50) -> RecordPage:
        before = None if cursor is None else parse_number(cursor, "cursor")
        listing = Listing(where, self._prefix, before, limit + 1)
        while not listing.complete:
            rows = dict(listing.take(await self._run(layout.LIST, listing.arguments())))
            stock = [task_id for task_id, kept in rows.items() if news(kept)]
            listing.add({**rows, **(await self._read(stock))} if stock else rows)
        return listing.page(limit)

    async def events(self, task_id: str, after: str | None = None, limit: int = 1000) -> Sequence[TaskEvent]:
        first = 0 if after is None else parse_number(after, "event id")
        arguments = [self._prefix, task_id, first, limit]
        stock, text, log, texts = await self._run(layout.EVENTS, arguments)
        if text is not None and stock.decode() != hashlib.sha1(text, usedforsecurity=False).hexdigest():
            await self._read([task_id])
            stock, text, log, texts = await self._run(layout.EVENTS, arguments)
        if log:
            texts = log.split(b"\n")[first : first + limit]
        return [to_redis_event(first + place, task_id, each) for place, each in enumerate(texts, 1)]

    def watch(self, task_id: str, *, until_ready: bool = False) -> AbstractAsyncContextManager[Watch]:
        return self._waiting().flag(task_id, until_ready=until_ready)

    async def request_cancel(self, task_ids: Sequence[str]) -> Collection[str]:
        now = time.time()
        slices = [
            layout.cancel_arguments(self._prefix, self.expires, part, now, running=True)
            for part in _slices(task_ids)
        ]
        answers = await self._run_slices(layout.CANCEL, slices)
        return {task_id.decode() for answer in answers for task_id in answer}

    async def cancelled(self, task_ids: Sequence[str]) -> Collection[str]:
        if not task_ids:
            return set()
        with store_errors():
            scores = await self._opened().send("ZMSCORE", f"{self._prefix}celeriac:cancelled", *task_ids)
        return {task_id for task_id, score in zip(task_ids, scores, strict=True) if score is not None}

    def cancellations(self) -> AbstractAsyncContextManager[CancellationFeed]:
        return self._waiting().feed()

    async def forget(self, task_ids: Sequence[str]) -> int:
        slices = [[self._prefix, *part] for part in _slices(task_ids)]
        return sum(await self._run_slices(layout.FORGET, slices))

    async def trim(self) -> int:
        now = time.time()
        self._trim_at = time.monotonic() + _TRIM_PAUSE
        total = 0
        looks, compared = _TRIMMED, _COMPARED
        for _ in range(_TRIM_SLICES):
            arguments = layout.trim_arguments(self._prefix, self.expires, now, looks=looks, compared=compared)
            removed, complete, *stock = await self._run(layout.TRIM, arguments)
            if stock:
                await self._read([task_id.decode() for task_id in stock])
            else:
                # Where stock workers have written, they have written more, which expires unless it is taken in.
                compared = 0
            total += removed
            if complete:
                looks = 0
            if not (looks or compared):
                break
        return total

    async def gone(self, task_ids: Sequence[str]) -> Mapping[str, Gone]:
        link = self._opened()
        reading = [
            redis_keys.gone(link, self._prefix, self.expires, part) for part in _slices(task_ids, _READ)
        ]
        return {each.task_id: each for part in reading for each in await part}

    async def claim_key(self, key: str, fingerprint: str, task_id: str, *, expires: float) -> KeyClaim:
        return await redis_keys.claim_key(self._opened(), self._prefix, key, fingerprint, task_id, expires)

    async def release_key(self, key: str, task_id: str) -> None:
        await redis_keys.release_key(self._opened(), self._prefix, key, task_id)

    async def set_chord_size(self, group_id: str, size: int) -> None:
        await self._chords.set_size(self._opened(), group_id, size, self._chord_times)

    async def save_chord_header(self, group_id: str, header: str) -> None:
        await self._chords.save_header(self._opened(), group_id, header, self._chord_times)

    async def extend_chord(self, group_id: str, by: int = 1, token: str | None = None) -> None:
        await self._chords.extend(self._opened(), group_id, by, token, self._chord_times)

    async def add_chord_parts(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        self._opened()
        return await self._parts.add(parts)

    async def _add_parts(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        return await self._chords.add(self._opened(), parts, self._chord_times)

    async def claimed_chords(self, group_ids: Sequence[str]) -> Collection[str]:
        return await self._chords.claimed(self._opened(), group_ids)

    async def finish_chord(self, claim: ChordClaim) -> bool:
        return await self._chords.finish(self._opened(), claim, self._chord_times)

    @property
    def _chord_times(self) -> ChordTimes:
        return ChordTimes.of(self.expires, self.chords_kept, self.chord_claim)

    def _tidy_now_and_then(self) -> None:
        """Trim where nobody else may do it: tasks of this process may all run in stock workers."""
        if time.monotonic() > self._trim_at and self._link is not None:
            self._trim_at = time.monotonic() + _TRIM_PAUSE
            self._trimming = asyncio.get_running_loop().create_task(self._tidy())

    async def _tidy(self) -> None:
        try:
            while await self.trim():
                pass
        except StoreUnavailable as exc:
            logger.warning("Expired records were not deleted: %s", exc)

    def _opened(self) -> Link:
        if self._link is None:
            raise not_open(str(self._server))
        return self._link

    def _waiting(self) -> Watchers:
        self._opened()
        assert self._watchers is not None
        return self._watchers

    async def _run(self, script: Script, arguments: Sequence[Any]) -> Any:
        return (await self._run_slices(script, [arguments]))[0]

    async def _run_slices(self, script: Script, slices: Sequence[Sequence[Any]]) -> builtins.list[Any]:
        """Run a script for each slice, all sent in this tick; the answers."""
        link = self._opened()
        started = [link.start(script, (), arguments) for arguments in slices]
        with store_errors():
            return [await each for each in started]


def _slices(items: Sequence[T], size: int = _WRITTEN) -> builtins.list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
