"""``result_backend = "memory://"``: the records in this process's memory, for Celery's synchronous code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from celeriac.backends.base import RecordBackend
from celeriac.backends.planned import PlannedBackend
from celeriac.stores.memory_records import MemoryRecords
from celeriac.stores.records import Transition
from celeriac.stores.rows import Row
from celeriac.stores.urls import memory_name

__all__ = ["MemoryBackend"]

_BATCH = 500


class MemoryBackend(PlannedBackend, RecordBackend):
    """Shares its records with every memory store and backend of the same name in this process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._records = MemoryRecords.named(memory_name(self.url or "memory://"))
        self._chords = self._records.chords

    def record_published(self, transitions: Sequence[Transition]) -> None:
        self._records.apply(transitions)

    def request_cancel(self, task_ids: Sequence[str], *, running: bool = True) -> Collection[str]:
        return self._records.request_cancel(task_ids, self._records.now(), running=running)

    def _row(self, task_id: str) -> Row | None:
        rows = self._records.fetch([task_id])
        return rows[0] if rows else None

    def _wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        return self._records.wait(condition, timeout)

    def _forget(self, task_id: str) -> None:
        self._records.forget([task_id])

    def _write_group(self, group_id: str, value: str) -> None:
        self._records.groups[group_id] = value

    def _read_group(self, group_id: str) -> str | None:
        return self._records.groups.get(group_id)

    def _delete_group(self, group_id: str) -> None:
        self._records.groups.pop(group_id, None)

    def cleanup(self) -> None:
        """Delete what has expired."""
        self._trim_chords()
        self._records.trim_traces(self._records.now())
        if self.expires:
            kept = float(self.expires)
            while self._records.trim(self._records.now(), kept, _BATCH) == _BATCH:
                pass
