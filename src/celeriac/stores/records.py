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
    "Gone",
    "Progress",
    "RecordFilter",
    "RecordPage",
    "TaskEvent",
    "TaskRecord",
    "Transition",
    "describe_error",
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
        return describe_error(self.result) if self.state in states.EXCEPTION_STATES else None


def describe_error(result: Any) -> str | None:
    """``"ValueError - what it said"`` for Celery's ``{"exc_type", "exc_message", …}``, else ``None``."""
    if not isinstance(result, Mapping):
        return None
    message = result.get("exc_message")
    if isinstance(message, (list, tuple)):
        message = ", ".join(str(part) for part in message)
    return f"{result.get('exc_type')} - {message}"


@dataclass(slots=True, kw_only=True)
class Transition:
    """A task's step into a state. What is ``None`` leaves the record as it was, except as said below.

    ``at`` is epoch seconds. ``args``, ``kwargs``, ``result`` and ``children`` are JSON texts, encoded once by whoever
    has the values.

    How a store applies one:

    - ``PENDING`` creates the record, enqueued at ``at``. On a record that exists it only fills what is still empty
      (the worker may have been faster than the publisher), never changes the state and appends no event — unless
      ``replay`` is set, which starts the record over: state ``PENDING``, enqueued at ``at``, ``eta``, ``expires`` and
      ``retries`` those of the transition, result, progress, worker, start, finish and cancel mark cleared, attempts
      kept.
    - Any other state fills in name, arguments, owner and relations where they are empty, and never changes them (they
      may have been redacted); it changes ``queue``, ``eta``, ``expires``, ``retries``, ``worker`` and ``children``.
      It takes ``result`` and ``traceback`` from the transition, ``None`` too: they belong to the state.
    - ``STARTED`` sets ``started_at`` and ``worker`` and adds an attempt; the last 20 are kept.
    - ``RETRY``, ``FAILURE``, ``SUCCESS``, ``REVOKED`` and custom states end or update the last attempt, unless it has
      ended; the ready ones set ``finished_at``, the others clear it.
    - A record in ``SUCCESS`` never changes again except by ``replay`` (as in Celery's backends); one in another ready
      state is left only by ``STARTED``, ``RETRY`` or a ready state of a later attempt (more ``retries`` than the
      record's) — ``REVOKED`` only by ``replay``. What does not apply is dropped without a trace.
    - Every applied transition appends a ``state`` event, with ``{"state", "retries", "worker", "error"}``, and wakes
      who watches the task.
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

    A ``progress`` event (data ``{"current", "total", "note"}``) also becomes the record's progress. An event of a task
    that has no record is dropped.
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


@dataclass(frozen=True, slots=True)
class Gone:
    """What is left of a task whose record has expired: whose it was, and when it expired (UTC)."""

    task_id: str
    owner: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which records to list; what is ``None`` does not restrict.

    ``since`` (inclusive) and ``until`` (exclusive) are compared with ``enqueued_at``. ``search`` is a part of the id,
    the name or the arguments as JSON; small and capital ASCII letters are the same.
    """

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
