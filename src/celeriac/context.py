"""What a running task may ask for: its identity, its progress, its values."""

from __future__ import annotations

from typing import Any

__all__ = ["CONTEXT", "TaskContext"]

#: Where the request that a task's dependencies see has the task's context in its scope.
CONTEXT = "celeriac.context"


class TaskContext:
    """The execution that a task runs in. A parameter annotated with it is filled in by the worker.

    It is no part of the message: callers do not pass it.
    """

    __slots__ = ("_execution",)

    def __init__(self, execution: Any) -> None:
        self._execution = execution

    @property
    def id(self) -> str:
        """The task's id."""
        return str(self._execution.id)

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self._execution.name)

    @property
    def retries(self) -> int:
        """How often the task has been retried: 0 in its first attempt."""
        return int(self._execution.request.retries or 0)

    @property
    def owner(self) -> str | None:
        """Whose task it is, if anybody's: ``using(owner=…)``, or who made the request that enqueued it."""
        found: str | None = self._execution.owner
        return found

    @property
    def request_id(self) -> str | None:
        """The id of the HTTP request that led to the task, if one did."""
        found: str | None = self._execution.request_id
        return found

    @property
    def request(self) -> Any:
        """Celery's ``task.request``."""
        return self._execution.request

    def progress(self, current: float, total: float | None = None, note: str = "") -> None:
        """Record how far the task is, in its own unit. Never waits; may be called from a thread."""
        self._execution.progress(current, total, note)

    def emit(self, value: Any) -> None:
        """Send a JSON-able value to whoever follows the task's events. Never waits; may be called from a thread."""
        self._execution.emit(value)
