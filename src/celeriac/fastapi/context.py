"""The running task, for dependencies that want to know of it."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from celeriac.context import CONTEXT, TaskContext

__all__ = ["task_context"]


def task_context(connection: HTTPConnection) -> TaskContext | None:
    """A dependency: the context of the task that is running, and ``None`` in a request.

    ``context: Annotated[TaskContext | None, Depends(task_context)]``
    """
    context: TaskContext | None = connection.scope.get(CONTEXT)
    return context
