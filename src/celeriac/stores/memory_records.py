"""Records and events in memory, behind a lock: what the store and the result backend in memory stand on."""

from __future__ import annotations

import string
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import NamedTuple

from celery import states

from celeriac.stores.keys import KeyClaim
from celeriac.stores.memory_chords import MemoryChords
from celeriac.stores.memory_keys import MemoryGone, MemoryKeys
from celeriac.stores.records import READY_STATES, EventDraft, Gone, RecordFilter, Transition
from celeriac.stores.rows import CANCELLED, Row, micros, moment, search_parts
from celeriac.stores.transitions import advance, state_event
from celeriac.timing import Now, system_now

__all__ = ["Change", "MemoryRecords"]

_WAITING = frozenset({states.PENDING, states.RETRY})

#: Seconds that a revoked task is remembered as such when its record is gone.
_MARK_KEPT = 30 * 86_400.0

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Change(NamedTuple):
    """Something happened to a task: ``kind`` is ``state``, ``progress``, ``value``, ``cancel`` or ``forget``."""

    task_id: str
    kind: str
    state: str | None = None


class MemoryRecords:
    """The records of one name, for every store, backend, thread and event loop of this process."""

    _named: dict[str, MemoryRecords] = {}
    _named_lock = threading.Lock()

    def __init__(self) -> None:
        self.now: Now = system_now
        #: What Celery's groups consist of, as JSON.
        self.groups: dict[str, str] = {}
        self.chords = MemoryChords(self.groups)
        self._changed = threading.Condition()  # its lock is reentrant
        self._rows: dict[str, Row] = {}
        self._events: defaultdict[str, list[tuple[int, str, str, int]]] = defaultdict(list)
        self._keys = MemoryKeys()
        self._gone = MemoryGone()
        self._revoked: dict[str, float] = {}  # without a record any more: until when that is remembered
        self._numbers = count(1)
        self._event_ids = count(1)
        self._watchers: defaultdict[str, list[Callable[[Change], None]]] = defaultdict(list)
        self._cancel_listeners: list[Callable[[str], None]] = []

    @classmethod
    def named(cls, name: str) -> MemoryRecords:
        """The records that everybody in this process calls by this name."""
        with cls._named_lock:
            return cls._named.setdefault(name, MemoryRecords())

    def share(self, name: str) -> None:
        """Be the records of this name, of which there are none yet."""
        with self._named_lock:
            self._named[name] = self

    @classmethod
    def discard(cls, name: str) -> None:
        """Let go of the records of this name: the next who asks for it gets others."""
        with cls._named_lock:
            cls._named.pop(name, None)

    @contextmanager
    def watch(self, task_id: str, callback: Callable[[Change], None]) -> Iterator[None]:
        """Call back, in the thread of whoever makes it, upon each change of one task."""
        with self._changed:
            self._watchers[task_id].append(callback)
        try:
            yield
        finally:
            with self._changed:
                self._watchers[task_id].remove(callback)
                if not self._watchers[task_id]:
                    del self._watchers[task_id]

    @contextmanager
    def cancellations(self, callback: Callable[[str], None]) -> Iterator[None]:
        """Call back, in the thread of whoever asks for it, upon each cancellation."""
        with self._changed:
            self._cancel_listeners.append(callback)
        try:
            yield
        finally:
            with self._changed:
                self._cancel_listeners.remove(callback)

    def wait(self, until: Callable[[], bool], timeout: float | None) -> bool:
        """Block this thread until the condition holds; it is looked at upon each change. Whether it holds."""
        with self._changed:
            return self._changed.wait_for(until, timeout)

    def _tell(self, changes: Sequence[Change]) -> None:
        if changes:
            self._changed.notify_all()
        for change in changes:
            for watcher in self._watchers.get(change.task_id, ()):
                watcher(change)
            if change.kind == "cancel":
                for listener in self._cancel_listeners:
                    listener(change.task_id)

    def apply(self, transitions: Iterable[Transition]) -> None:
        """Apply transitions in order."""
        with self._changed:
            self._tell([change for step in transitions if (change := self._apply(step))])

    def _apply(self, step: Transition) -> Change | None:
        advanced = advance(self._rows.get(step.task_id), step, next(self._numbers))
        if advanced is None:
            return None
        row, entered = advanced
        self._rows[step.task_id] = row
        if not entered:
            return None
        self._append(row.task_id, "state", state_event(row), step.at)
        return Change(row.task_id, "state", row.state)

    def _append(self, task_id: str, kind: str, data: str, at: float) -> None:
        self._events[task_id].append((next(self._event_ids), kind, data, micros(at)))

    def append_events(self, drafts: Iterable[EventDraft]) -> None:
        """Append events; those of unknown tasks are dropped."""
        with self._changed:
            changes = []
            for draft in drafts:
                row = self._rows.get(draft.task_id)
                if row is None:
                    continue
                self._append(draft.task_id, draft.kind, draft.data, draft.at)
                if draft.kind == "progress":
                    self._rows[draft.task_id] = row._replace(progress=draft.data)
                changes.append(Change(draft.task_id, draft.kind))
            self._tell(changes)

    def fetch(self, task_ids: Iterable[str]) -> list[Row]:
        """The records of these tasks; unknown ids are left out."""
        with self._changed:
            return [row for task_id in task_ids if (row := self._rows.get(task_id))]

    def events(self, task_id: str, after: int, limit: int) -> list[tuple[int, str, str, int]]:
        """Up to ``limit`` events of a task with ids above ``after``, in order."""
        with self._changed:
            return list(islice((entry for entry in self._events.get(task_id, ()) if entry[0] > after), limit))

    def page(self, where: RecordFilter, before: int | None, limit: int) -> list[Row]:
        """Up to ``limit`` records, newest first."""
        matches = _matcher(where)
        with self._changed:
            rows = (row for row in reversed(self._rows.values()) if before is None or row.number < before)
            return list(islice(filter(matches, rows), limit))

    def request_cancel(self, task_ids: Iterable[str], now: float, *, running: bool = True) -> Collection[str]:
        """Mark tasks as cancelled, and revoke those that wait. Returns those that are marked now.

        Without ``running`` those that run go on unmarked.
        """
        with self._changed:
            found = {
                row.task_id: row
                for row in self._existing(task_ids)
                if row.state in _WAITING or (running and row.state not in READY_STATES)
            }
            changes: list[Change] = []
            for task_id, row in found.items():
                if row.cancel_requested_at is None:
                    self._rows[task_id] = row._replace(cancel_requested_at=micros(now))
                    changes.append(Change(task_id, "cancel"))
                if row.state in _WAITING:
                    revoke = Transition(task_id=task_id, state=states.REVOKED, at=now, result=CANCELLED)
                    changes += filter(None, [self._apply(revoke)])
            self._tell(changes)
            return set(found)

    def cancelled(self, task_ids: Iterable[str]) -> Collection[str]:
        """Which of these are marked as cancelled, or revoked, or were when their records went."""
        with self._changed:
            return {
                task_id
                for task_id in task_ids
                if (_is_cancelled(row) if (row := self._rows.get(task_id)) else task_id in self._revoked)
            }

    def forget(self, task_ids: Iterable[str]) -> int:
        """Delete records and their events. Returns how many records there were."""
        with self._changed:
            wanted = dict.fromkeys(task_ids)
            forgotten = [task_id for task_id in wanted if self._remove(task_id)]
            for task_id in wanted:
                self._gone.forget(task_id)
            self._tell([Change(task_id, "forget") for task_id in forgotten])
            return len(forgotten)

    def trim(self, now: float, kept: float, limit: int) -> int:
        """Delete up to ``limit`` records that ended more than ``kept`` seconds ago. Returns how many went."""
        with self._changed:
            before = micros(now - kept)
            old = [
                (ended, row)
                for row in self._rows.values()
                if (ended := row.finished_at) is not None and ended < before
            ]
            old.sort(key=lambda each: each[0])
            for ended, row in old[:limit]:
                self._remove(row.task_id)
                self._gone.remember(Gone(row.task_id, row.owner, moment(ended + micros(kept))), now + kept)
            return len(old[:limit])

    def _remove(self, task_id: str) -> bool:
        row = self._rows.pop(task_id, None)
        if row is None:
            return False
        self._events.pop(task_id, None)
        self._revoked.pop(task_id, None)
        if row.state == states.REVOKED:
            self._revoked[task_id] = self.now() + _MARK_KEPT
        return True

    def trim_traces(self, now: float) -> None:
        """Delete keys that have expired, and forget records that went long ago."""
        with self._changed:
            self._revoked = {task_id: until for task_id, until in self._revoked.items() if until > now}
            self._keys.trim(now)
            self._gone.trim(now)

    def gone(self, task_ids: Iterable[str]) -> list[Gone]:
        """What is remembered of those of these tasks whose records have expired."""
        with self._changed:
            missing = [task_id for task_id in task_ids if task_id not in self._rows]
            return list(self._gone.fetch(missing, self.now()))

    def claim_key(self, key: str, fingerprint: str, task_id: str, expires: float) -> KeyClaim:
        """Take a key that is free, for so many seconds; whose it is now."""
        with self._changed:
            return self._keys.claim(key, fingerprint, task_id, self.now(), expires)

    def release_key(self, key: str, task_id: str) -> None:
        """Free a key, if it still is this task's."""
        with self._changed:
            self._keys.release(key, task_id)

    def _existing(self, task_ids: Iterable[str]) -> Iterator[Row]:
        return (row for task_id in task_ids if (row := self._rows.get(task_id)))


def _is_cancelled(row: Row) -> bool:
    if row.state == states.REVOKED:
        return True
    return row.cancel_requested_at is not None and row.state not in READY_STATES


def _matcher(where: RecordFilter) -> Callable[[Row], bool]:
    equal = {"state": where.state, "name": where.name, "queue": where.queue, "owner": where.owner}
    equal = {field: value for field, value in equal.items() if value is not None}
    since = None if where.since is None else micros(where.since.timestamp())
    until = None if where.until is None else micros(where.until.timestamp())
    needles = {part.translate(_ASCII_LOWER) for part in search_parts(where.search or "")}

    def matches(row: Row) -> bool:
        if any(getattr(row, field) != value for field, value in equal.items()):
            return False
        if since is not None and (row.enqueued_at is None or row.enqueued_at < since):
            return False
        if until is not None and (row.enqueued_at is None or row.enqueued_at >= until):
            return False
        texts = [
            text.translate(_ASCII_LOWER) for text in (row.task_id, row.name, row.args, row.kwargs) if text
        ]
        return any(needle in text for text in texts for needle in needles)

    return matches
