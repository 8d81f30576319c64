"""Idempotency keys and expired tasks in memory; whoever has them holds a lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from celeriac.stores.keys import KeyClaim
from celeriac.stores.records import Gone
from celeriac.stores.rows import micros, moment

__all__ = ["MemoryGone", "MemoryKeys"]


class _Key(NamedTuple):
    fingerprint: str
    task_id: str
    at: float
    until: float


class MemoryKeys:
    """The keys of one name. All times are epoch seconds."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}

    def claim(self, key: str, fingerprint: str, task_id: str, now: float, expires: float) -> KeyClaim:
        """Take a key that is free or expired; whose it is now."""
        held = self._keys.get(key)
        if held is None or held.until <= now:
            held = self._keys[key] = _Key(fingerprint, task_id, now, now + expires)
        new = (held.fingerprint, held.task_id) == (fingerprint, task_id)
        return KeyClaim(held.task_id, held.fingerprint, moment(micros(held.at)), new)

    def release(self, key: str, task_id: str) -> None:
        """Free a key, if it still is this task's."""
        held = self._keys.get(key)
        if held is not None and held.task_id == task_id:
            del self._keys[key]

    def trim(self, now: float) -> None:
        """Delete what has expired."""
        for key in [key for key, held in self._keys.items() if held.until <= now]:
            del self._keys[key]


class MemoryGone:
    """Tasks whose records have expired."""

    def __init__(self) -> None:
        self._gone: dict[str, tuple[Gone, float]] = {}

    def remember(self, gone: Gone, until: float) -> None:
        """Remember that a record has expired."""
        self._gone[gone.task_id] = gone, until

    def forget(self, task_id: str) -> None:
        """Leave no trace of a task."""
        self._gone.pop(task_id, None)

    def fetch(self, task_ids: Iterable[str], now: float) -> Iterator[Gone]:
        """Those of these tasks that are remembered."""
        for task_id in task_ids:
            gone, until = self._gone.get(task_id, (None, 0.0))
            if gone is not None and until > now:
                yield gone

    def trim(self, now: float) -> None:
        """Forget those that have been remembered for long enough."""
        for task_id in [task_id for task_id, (_, until) in self._gone.items() if until <= now]:
            del self._gone[task_id]
