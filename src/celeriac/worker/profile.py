"""What the executor has to know of a task type, worked out once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

from celeriac.arguments import ArgumentSchema
from celeriac.autoretry import retries_itself
from celeriac.compat import RequestStack, has_custom
from celeriac.dependencies import Injected
from celeriac.protocol.settlement import AckSettings
from celeriac.task import Task
from celeriac.worker.uploads import TaskFiles

__all__ = ["Kind", "TaskProfile"]


class Kind(Enum):
    """How a task's function is run."""

    COROUTINE = "on the event loop"
    GENERATOR = "on the event loop, emitting what it yields"
    FUNCTION = "in a thread"


class TaskProfile:
    """A task type as its worker sees it.

    ``time_limit`` and ``soft_time_limit`` are the worker's own, in seconds, for tasks that have none.
    """

    __slots__ = (
        "acks",
        "after_return",
        "autoretry",
        "before_start",
        "call",
        "context",
        "files",
        "handled",
        "injected",
        "kind",
        "loads_arguments",
        "on_failure",
        "on_retry",
        "on_success",
        "places",
        "schema",
        "soft_time_limit",
        "task",
        "time_limit",
        "track_started",
    )

    def __init__(
        self,
        task: Any,
        *,
        validate: bool,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
    ) -> None:
        self.task = task
        if not isinstance(task.request_stack, RequestStack):
            # A class of Celery's own: its stack is keyed by the thread, and knows no executions.
            task.request_stack = RequestStack()
        function = task.function if isinstance(task, Task) else inspect.unwrap(task.run)
        # Not unwrapped: a plain function around a coroutine function is a plain function.
        self.kind = _kind_of(
            getattr(task, "_decorated_fun", None) or getattr(task, "_orig_run", None) or task.run
        )
        injected = task.injected if isinstance(task, Task) else Injected.of(function, task.name)
        self.context = injected.contexts
        #: FastAPI's dependencies; ``None`` where there are none, so that a plain task pays nothing for them.
        self.injected = None if injected.dependant is None else injected
        # Around dependencies, which Celery's own wrapper of a plain function would not see either.
        by_invoker = self.kind is not Kind.FUNCTION or self.injected is not None
        self.autoretry = by_invoker and retries_itself(task)
        self.call = _callable_of(task, self.autoretry)
        self.schema: ArgumentSchema | None = None
        if isinstance(task, Task) and task.typing and validate:
            self.schema = task.schema
        # With ``pydantic=True`` the function is in a wrapper of Celery's, which does that.
        self.loads_arguments = self.schema is not None and not task.is_pydantics
        self.places: Callable[[Any, Any], tuple[Any, Any]] | None = None
        if isinstance(task, Task) and not self.loads_arguments and (self.context or self.injected):
            self.places = task.schema.place
        self.files: TaskFiles | None = None
        if isinstance(task, Task) and task.schema.takes_files:
            self.files = TaskFiles(task.schema, task.app.uploads)
        self.acks = AckSettings(
            acks_late=bool(task.acks_late),
            acks_on_failure=bool(task.acks_on_failure),
            acks_on_timeout=bool(task.acks_on_timeout),
            reject_on_worker_lost=bool(task.reject_on_worker_lost),
        )
        self.track_started = bool(task.track_started)
        self.time_limit: float | None = task.time_limit or time_limit
        self.soft_time_limit: float | None = task.soft_time_limit or soft_time_limit
        self.before_start = _handler(task, "before_start")
        self.on_success = _handler(task, "on_success")
        self.on_failure = _handler(task, "on_failure")
        self.on_retry = _handler(task, "on_retry")
        self.after_return = _handler(task, "after_return")
        handlers = (self.before_start, self.on_success, self.on_failure, self.on_retry, self.after_return)
        self.handled = any(handler is not None for handler in handlers)


def _kind_of(function: Callable[..., Any]) -> Kind:
    if inspect.isasyncgenfunction(function):
        return Kind.GENERATOR
    if inspect.iscoroutinefunction(function):
        return Kind.COROUTINE
    return Kind.FUNCTION


def _callable_of(task: Any, autoretry: bool) -> Callable[..., Any]:
    if has_custom(task, "__call__"):
        return task  # type: ignore[no-any-return]
    # Celery's autoretry wraps ``run`` in a function that cannot see what a coroutine raises; the invoker does it.
    return task._orig_run if autoretry else task.run  # type: ignore[no-any-return]


def _handler(task: Any, name: str) -> Callable[..., Any] | None:
    return getattr(task, name) if has_custom(task, name) else None
