"""Between what the store port speaks and what is kept: JSON texts, and times in microseconds since the epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from celery import states

from celeriac.stores.records import READY_STATES, Attempt, Progress, TaskEvent, TaskRecord, describe_error

__all__ = [
    "CANCELLED",
    "Row",
    "error_of",
    "micros",
    "moment",
    "parse_number",
    "search_parts",
    "to_event",
    "to_progress",
    "to_record",
]

#: The result of a task that was cancelled before it started: Celery's own error for it, as JSON.
CANCELLED = (
    '{"exc_type": "TaskRevokedError", "exc_message": ["cancelled"], "exc_module": "celery.exceptions"}'
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Row(NamedTuple):
    """A record as it is kept. ``number`` orders records by age; ``date_done`` is what Celery alone has written."""

    number: int
    task_id: str
    state: str
    name: str | None = None
    queue: str | None = None
    args: str | None = None
    kwargs: str | None = None
    owner: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    enqueued_at: int | None = None
    eta: int | None = None
    expires: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    date_done: str | None = None
    retries: int | None = None
    worker: str | None = None
    attempts: str | None = None
    progress: str | None = None
    result: str | None = None
    traceback: str | None = None
    children: str | None = None
    cancel_requested_at: int | None = None

    @property
    def finish_time(self) -> datetime | None:
        """When the task ended (UTC)."""
        if self.finished_at is None and self.date_done and self.state in READY_STATES:
            return datetime.fromisoformat(self.date_done).replace(tzinfo=UTC)
        return _moment(self.finished_at)


def micros(seconds: float) -> int:
    """Epoch seconds as whole microseconds, rounded as SQL does it."""
    return int(seconds * 1_000_000 + 0.5)


def moment(value: int) -> datetime:
    """Microseconds since the epoch as a time (UTC)."""
    return _EPOCH + timedelta(microseconds=value)


def _moment(value: int | None) -> datetime | None:
    return None if value is None else moment(value)


def _json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return f"<{len(text)} characters that are not JSON>"  # by a stock worker with another serializer


def error_of(state: str, result: str | None) -> str | None:
    """``"ValueError - what it said"`` of a failure's JSON text, else ``None``."""
    if result is None or state not in states.EXCEPTION_STATES:
        return None
    try:
        return describe_error(json.loads(result))
    except ValueError:
        return None


def to_record(row: Row) -> TaskRecord:
    """The record that a row holds."""
    return TaskRecord(
        id=row.task_id,
        state=row.state,
        name=row.name,
        queue=row.queue,
        args=_json(row.args),
        kwargs=_json(row.kwargs),
        owner=row.owner,
        root_id=row.root_id,
        parent_id=row.parent_id,
        group_id=row.group_id,
        enqueued_at=_moment(row.enqueued_at),
        eta=_moment(row.eta),
        expires=_moment(row.expires),
        started_at=_moment(row.started_at),
        finished_at=row.finish_time,
        retries=row.retries or 0,
        worker=row.worker,
        attempts=[_attempt(entry) for entry in _json(row.attempts) or ()],
        progress=to_progress(_json(row.progress)),
        result=_json(row.result),
        traceback=row.traceback,
        children=_json(row.children),
        cancel_requested_at=_moment(row.cancel_requested_at),
    )


def _attempt(entry: Mapping[str, Any]) -> Attempt:
    started = _EPOCH + timedelta(microseconds=entry["started_at"])
    return Attempt(entry["retries"], entry["worker"], started, entry["state"], entry.get("error"))


def to_progress(value: Any) -> Progress | None:
    """The progress that the data of an event tells, if it does."""
    if not isinstance(value, Mapping) or "current" not in value:
        return None
    return Progress(value["current"], value.get("total"), value.get("note") or "")


def to_event(id_: int, task_id: str, kind: Any, data: str, at: int) -> TaskEvent:
    """The event that a row holds."""
    return TaskEvent(str(id_), task_id, kind, json.loads(data), _EPOCH + timedelta(microseconds=at))


def parse_number(text: str, what: str) -> int:
    """A cursor or an event id that a store has made. Raises ValueError for what cannot be one."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f"{text!r} is no {what} of this store.")
    return int(text)


def search_parts(search: str) -> set[str]:
    """What to look for in JSON texts: beyond ASCII, a character may be written as it is or escaped."""
    return {search, json.dumps(search)[1:-1]}
