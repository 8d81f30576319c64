"""What the routes answer, as pydantic models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, Self, TypeVar

from celery import states
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError

from celeriac.brokers.base import DeadLetter
from celeriac.fastapi.texts import sayable
from celeriac.stores.records import TaskRecord

__all__ = [
    "AttemptOut",
    "Cancelled",
    "DeadLetterIds",
    "DeadLetterOut",
    "DeadLetterPage",
    "ErrorOut",
    "Problem",
    "ProgressOut",
    "Replayed",
    "Retried",
    "TaskAccepted",
    "TaskLinks",
    "TaskOut",
    "TaskPage",
    "TaskPending",
    "TaskResult",
    "TaskStatus",
    "TracedTaskOut",
    "error_of",
]


T = TypeVar("T")


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class AttemptOut(_Out):
    """One start of the task."""

    retries: int
    worker: str
    started_at: datetime
    state: str
    error: str | None = None


class ProgressOut(_Out):
    """How far the task says it is, in its own unit."""

    current: float
    total: float | None = None
    note: str = ""


class ErrorOut(_Out):
    """Why the task failed, or is tried again."""

    type: str
    message: str


class TaskOut(_Out):  # type: ignore[no-redef]  # the plugin calls its own catch-all `kwargs`
    """What is known of one task. Times are UTC."""

    id: str
    name: str | None = None
    state: str = Field(description="One of Celery's states, or a state of the task's own.")
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
    attempts: list[AttemptOut] = []
    progress: ProgressOut | None = None
    result: Any = None
    error: ErrorOut | None = None
    cancel_requested: bool = False

    @classmethod
    def of(cls, record: TaskRecord) -> Self:
        """The model of a record."""
        error = error_of(record)
        more = {
            "result": None if error else record.result,
            "error": error,
            "cancel_requested": record.cancel_requested_at is not None,
        }
        given = {name: getattr(record, name) for name in cls.model_fields if name not in more}
        model = cls.model_validate(given | more, from_attributes=True)
        try:
            model.__pydantic_serializer__.to_json(model)
        except PydanticSerializationError:
            return cls.model_validate(sayable(model.model_dump()))
        return model


class TracedTaskOut(TaskOut):  # type: ignore[no-redef]  # as above
    """What is known of one task, with the traceback of its failure."""

    traceback: str | None = None


class TaskPage(BaseModel):
    """A page of tasks, newest first. ``next_cursor`` fetches the next one; ``null`` means this was the last."""

    items: list[TaskOut]
    next_cursor: str | None = None


class TaskResult(BaseModel):
    """What a task returned."""

    task_id: str
    state: str
    result: Any = None


class TaskPending(BaseModel):
    """A task that has not finished yet."""

    task_id: str
    state: str


class TaskLinks(BaseModel):
    """Where to ask about a task, as paths of this server; ``null`` for what is not there to be asked."""

    status: str
    events: str | None = None
    cancel: str | None = None


class TaskAccepted(BaseModel):
    """A task that was enqueued."""

    task_id: str
    state: str
    links: TaskLinks


class TaskStatus(BaseModel, Generic[T]):
    """How a task stands. ``result`` is what it returned, once it has succeeded."""

    task_id: str
    state: str = Field(description="One of Celery's states, or a state of the task's own.")
    progress: ProgressOut | None = None
    result: T | None = None
    error: ErrorOut | None = Field(None, description="Why it is tried again, or was tried before.")


class Cancelled(BaseModel):
    """The answer to a request to cancel; ``cancelled`` is false for a task that had already finished."""

    task_id: str
    state: str
    cancelled: bool


class Retried(BaseModel):
    """A task that was enqueued again, under the same id."""

    task_id: str
    state: str


class DeadLetterOut(BaseModel):
    """A message that nobody delivers any more. ``id`` is what replays it; times are UTC."""

    id: str
    task_id: str | None = None
    name: str | None = None
    queue: str
    reason: str = Field(description="Why it was given up.")
    deliveries: int
    died_at: datetime

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        """The model of a dead letter."""
        return cls(
            id=letter.id,
            task_id=sayable(letter.task_id) or None,
            name=sayable(letter.task) or None,
            queue=sayable(letter.queue),
            reason=sayable(letter.reason),
            deliveries=letter.deliveries,
            died_at=datetime.fromtimestamp(letter.at, UTC),
        )


class DeadLetterPage(BaseModel):
    """Dead letters, newest first."""

    items: list[DeadLetterOut]


class DeadLetterIds(BaseModel):
    """Which dead letters to replay."""

    ids: list[str] = Field(min_length=1, max_length=1000)


class Replayed(BaseModel):
    """How many of the dead letters that were named are in their queues again."""

    replayed: int


class Problem(BaseModel):
    """What went wrong, in the form of RFC 9457 (``application/problem+json``)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A URN that names the kind of problem.")
    title: str
    status: int
    detail: str
    task_id: str | None = None
    exc_type: str | None = None
    exc_message: str | None = None
    expired_at: datetime | None = None
    errors: list[Any] | None = None
    traceback: str | None = None


def error_of(record: TaskRecord) -> ErrorOut | None:
    """The error that a failed, retrying or revoked task's record keeps, else ``None``."""
    if record.state not in states.EXCEPTION_STATES or not isinstance(record.result, Mapping):
        return None
    message = record.result.get("exc_message")
    if isinstance(message, Sequence) and not isinstance(message, str):
        message = ", ".join(str(part) for part in message)
    return ErrorOut(type=str(record.result.get("exc_type")), message="" if message is None else str(message))
