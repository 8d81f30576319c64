"""What a store keeps: a record per task, and its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from celery import states

__all__ = [
    "READY_STATES",
    "Attempt",
    "EventDraft",
    "Progress",
    "RecordFilter",
    "RecordPage",
    "TaskEvent",
    "TaskRecord",
    "Transition",
]

#: States that a task does not leave by itself (Celery's READY_STATES).
READY_STATES: frozenset[str] = frozenset(states.READY_STATES)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a task: who ran it, when (UTC), and how it ended, if it has (``RETRY``, ``FAILURE``, …)."""

    retries: int
    worker: str
    started_at: datetime
    state: str = states.STARTED
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task says it is: ``current`` of ``total`` in the task's own unit, and a note."""

    current: float
    total: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """All that is known of one task. Times are timezone-aware UTC; ``args``, ``kwargs`` and ``result`` are JSON values.

    ``state`` is one of Celery's. A failed task's ``result`` is Celery's ``{"exc_type", "exc_message", "exc_module"}``.
    """

    id: str
    state: str
    name: str | None = None
    queue: str | None = None
    args: Any = None
    kwargs: Any = None
    owner: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    enqueued_at: datetime | None = None
    eta: datetime | None = None
    expires: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    retries: int = 0
    worker: str | None = None
    attempts: Sequence[Attempt] = ()
    progress: Progress | None = None
    result: Any = None
    traceback: str | None = None
    children: Any = None
    cancel_requested_at: datetime | None = None

    @property
    def ready(self) -> bool:
        """Whether the task has reached its end."""
        return self.state in READY_STATES

    @property
    def error(self) -> str | None:
        """``"ValueError - what it said"`` for a failed or retrying task, else ``None``."""
        if self.state in states.EXCEPTION_STATES and isinstance(self.result, Mapping):
            message = self.result.get("exc_message")
            if isinstance(message, (list, tuple)):
                message = ", ".join(str(part) for part in message)
            return f"{self.result.get('exc_type')} - {message}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A task's step into a state. What is ``None`` leaves the record as it was.

    ``at`` is epoch seconds. ``args``, ``kwargs``, ``result`` and ``children`` are JSON texts, encoded once by whoever
    has the values.

    How a store applies one:

    - ``PENDING`` creates the record. On a record that exists it only fills what is still empty (the worker may have
      been faster than the publisher), and never changes the state — unless ``replay`` is set, which starts the record
      over: state ``PENDING``, result, progress, finish time and cancel mark cleared, attempts kept.
    - ``STARTED`` sets ``started_at`` and ``worker`` and adds an attempt.
    - ``RETRY``, ``FAILURE``, ``SUCCESS``, ``REVOKED`` and custom states end or update the last attempt; the ready ones
      set ``finished_at``.
    - A record in ``SUCCESS`` never changes again except by ``replay`` (as in Celery's backends); one in another ready
      state is left only by ``STARTED``, ``RETRY`` or a ready state of a later attempt — ``REVOKED`` only by ``replay``.
    - Every applied transition appends a ``state`` event and wakes who watches the task.
    - A record that does not exist yet is created by any transition.
    """

    task_id: str
    state: str
    at: float
    name: str | None = None
    queue: str | None = None
    args: str | None = None
    kwargs: str | None = None
    owner: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    eta: float | None = None
    expires: float | None = None
    retries: int | None = None
    worker: str | None = None
    result: str | None = None
    traceback: str | None = None
    children: str | None = None
    replay: bool = False


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event that a running task emits: ``data`` is a JSON text, ``at`` epoch seconds.

    A ``progress`` event (data ``{"current", "total", "note"}``) also becomes the record's progress.
    """

    task_id: str
    kind: Literal["progress", "value"]
    data: str
    at: float


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """Something that happened to a task. ``id`` orders the events of one task and is what ``after`` takes."""

    id: str
    task_id: str
    kind: Literal["state", "progress", "value"]
    data: Any
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which records to list; what is ``None`` does not restrict. Times are compared with ``enqueued_at``."""

    state: str | None = None
    name: str | None = None
    queue: str | None = None
    owner: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None


@dataclass(frozen=True, slots=True)
class RecordPage:
    """A page of records, newest first. ``cursor`` fetches the next page; ``None`` means this was the last."""

    records: Sequence[TaskRecord] = field(default_factory=list)
    cursor: str | None = None
