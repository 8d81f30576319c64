"""The worker's executions as Celery's remote control commands expect to find them.

Celery's commands read module globals of ``celery.worker.state``, which its own worker maintains for every task.
Nothing of that happens on our hot path: before a command that reads them, the thread that runs it fills them from
a snapshot of the worker, and empties them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

from celeriac.worker.compat import worker_state

__all__ = ["ExecutionInfo", "ExecutionsView", "Mirror", "RequestView"]


class ExecutionInfo(Protocol):
    """What remote control may know of one task that the worker holds.

    ``args`` and ``kwargs`` are the arguments as they travelled (before validation), ``type`` is the registered task
    name and ``name`` its shadow if it has one. ``time_start`` is epoch seconds, ``None`` until the task runs.
    ``stamps`` maps each stamped header to its value.
    """

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def args(self) -> Any: ...
    @property
    def kwargs(self) -> Any: ...
    @property
    def argsrepr(self) -> str: ...
    @property
    def kwargsrepr(self) -> str: ...
    @property
    def hostname(self) -> str: ...
    @property
    def time_start(self) -> float | None: ...
    @property
    def acknowledged(self) -> bool: ...
    @property
    def delivery_info(self) -> Mapping[str, Any]: ...
    @property
    def worker_pid(self) -> int | None: ...
    @property
    def stamps(self) -> Mapping[str, Any]: ...
    @property
    def started(self) -> bool: ...


class ExecutionsView(Protocol):
    """The worker as remote control sees it. Called in the control threads, while the event loop goes on."""

    def executions(self) -> Iterable[ExecutionInfo]:
        """A snapshot of everything that the worker holds, started or not (``list(running.values())`` is one)."""

    def active_count(self) -> int:
        """How many of them have started."""

    def total_count(self) -> Mapping[str, int]:
        """Tasks started since the worker did, by task name."""


class RequestView:
    """One execution in the shape of ``celery.worker.request.Request``, as far as remote control goes.

    Args:
        execution: the execution.
        app: the Celery app.
        terminate: called with the task id and the number of a signal when a command wants it gone.
    """

    __slots__ = ("__weakref__", "_app", "_execution", "_terminate")

    def __init__(self, execution: ExecutionInfo, app: Any, terminate: Callable[[str, Any], None]) -> None:
        self._execution = execution
        self._app = app
        self._terminate = terminate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._execution, name)

    @property
    def task_id(self) -> str:
        return self._execution.id

    @property
    def task_name(self) -> str:
        return self._execution.name

    @property
    def task(self) -> Any:
        """The task, or something with a result backend where the name is not registered."""
        task = self._app.tasks.get(self._execution.type)
        return task if task is not None else SimpleNamespace(backend=self._app.backend)

    def terminate(self, pool: Any = None, signal: Any = None) -> None:
        """Have the worker stop this task."""
        self._terminate(self._execution.id, signal)

    def cancel(self, pool: Any = None, signal: Any = None, emit_retry: bool = True) -> None:
        """The same: a task inside an event loop has no process that could be cancelled without it."""
        self._terminate(self._execution.id, signal)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """The keys and values of Celery's ``Request.info``."""
        execution = self._execution
        return {
            "id": execution.id,
            "name": execution.name,
            "args": execution.argsrepr if safe else execution.args,
            "kwargs": execution.kwargsrepr if safe else execution.kwargs,
            "type": execution.type,
            "hostname": execution.hostname,
            "time_start": execution.time_start,
            "acknowledged": execution.acknowledged,
            "delivery_info": dict(execution.delivery_info),
            "worker_pid": execution.worker_pid if execution.started else None,
        }

    def __repr__(self) -> str:
        return f"<RequestView: {self._execution.name}[{self._execution.id}]>"


class Mirror:
    """Fills Celery's worker state for the time of one command.

    Args:
        view: the worker.
        app: the Celery app.
        terminate: see :class:`RequestView`.
    """

    def __init__(self, view: ExecutionsView, app: Any, terminate: Callable[[str, Any], None]) -> None:
        self._view = view
        self._app = app
        self._terminate = terminate

    @contextmanager
    def filled(self, *, requests: bool) -> Iterator[None]:
        """Counts always; the requests themselves only on demand, because there may be ten thousand."""
        self._fill_counts()
        if not requests:
            yield
            return
        # Celery's sets are weak: this list is what keeps the views alive.
        views = [RequestView(execution, self._app, self._terminate) for execution in self._view.executions()]
        try:
            self._fill_requests(views)
            yield
        finally:
            worker_state.requests.clear()
            worker_state.reserved_requests.clear()
            worker_state.active_requests.clear()

    def _fill_counts(self) -> None:
        totals = dict(self._view.total_count())
        worker_state.total_count.clear()
        worker_state.total_count.update(totals)
        worker_state.all_total_count[0] = sum(totals.values())

    def _fill_requests(self, views: list[RequestView]) -> None:
        worker_state.requests.update((view.id, view) for view in views)
        worker_state.reserved_requests.update(views)
        worker_state.active_requests.update(view for view in views if view.started)
