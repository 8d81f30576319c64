"""What a synchronous result backend over records does, wherever the records are kept."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import result_from_tuple

from celeriac.backends.chords import ChordBackend
from celeriac.backends.recording import RecordingBackend
from celeriac.stores.rows import Row

__all__ = ["RecordBackend"]


class RecordBackend(RecordingBackend, ChordBackend, BaseBackend):  # type: ignore[misc]
    """Keeps Celery's promises over the records that the asyncio side of the app reads and writes, too.

    Semantics are those of Celery's result backends: an unknown id is ``PENDING``, a ``SUCCESS`` is final.
    """

    @abstractmethod
    def _row(self, task_id: str) -> Row | None:
        """The record of a task."""

    @abstractmethod
    def _wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Block until the condition holds, for ``timeout`` seconds at most. Whether it holds."""

    @abstractmethod
    def _write_group(self, group_id: str, value: str) -> None:
        """Keep what a group consists of."""

    @abstractmethod
    def _read_group(self, group_id: str) -> str | None:
        """What a group consists of."""

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        row = self._row(task_id)
        if row is None:
            return {
                "task_id": task_id,
                "status": states.PENDING,
                "result": None,
                "traceback": None,
                "children": None,
            }
        finished = row.finish_time
        meta: dict[str, Any] = {
            "task_id": task_id,
            "status": row.state,
            "result": self._result(row),
            "traceback": row.traceback,
            "children": self.decode(row.children),
            "date_done": None if finished is None else finished.replace(tzinfo=None),
            "name": row.name,
            "args": self.decode(row.args),
            "kwargs": self.decode(row.kwargs),
            "worker": row.worker,
            "retries": row.retries,
            "queue": row.queue,
        }
        if row.parent_id is not None:
            meta["parent_id"] = row.parent_id
        if row.group_id is not None:
            meta["group_id"] = row.group_id
        decoded: dict[str, Any] = self.meta_from_decoded(meta)
        return decoded

    def _result(self, row: Row) -> Any:
        result = self.decode(row.result)
        if row.state in states.EXCEPTION_STATES and not isinstance(result, Mapping):
            # What is raised must be an exception, even where nobody has recorded which.
            return {"exc_type": row.state.title(), "exc_message": [] if result is None else [result]}
        return result

    def is_cancelled(self, task_id: str) -> bool:
        row = self._row(task_id)
        if row is None:
            return False
        marked = row.cancel_requested_at is not None and row.state not in states.READY_STATES
        return marked or bool(row.state == states.REVOKED)

    def task_result_exists(self, task_id: str) -> bool:
        return self._row(task_id) is not None

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Wait for the task's end and return its meta data.

        ``interval``, in seconds, is how often ``on_interval`` is called; the end itself is noticed at once. Raises
        Celery's TimeoutError after ``timeout`` seconds.
        """
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = interval or 0.5

        def is_ready() -> bool:
            row = self._row(task_id)
            return row is not None and row.state in states.READY_STATES

        while True:
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            ready = self._wait_until(is_ready, max(left, 0.0))
            if on_interval:
                # Also now that it has ended: ``get`` raises here what a part of a chord raised, rather than the
                # ChordError of its body.
                on_interval()
            if ready:
                meta: dict[str, Any] = self.get_task_meta(task_id)
                return meta
            if deadline is not None and time.monotonic() >= deadline:
                raise CeleryTimeoutError("The operation timed out.")

    def _save_group(self, group_id: str, result: Any) -> Any:
        self._write_group(group_id, self._text(result.as_tuple()))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        value = self._read_group(group_id)
        if value is None:
            return None
        return {"task_id": group_id, "result": result_from_tuple(json.loads(value), self.app)}
