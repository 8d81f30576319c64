"""``task.map``, ``task.starmap`` and ``task.chunks``: the tasks of Celery behind them, for coroutine functions, too.

https://docs.celeryq.dev/en/stable/userguide/canvas.html#map-starmap
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from celery import current_task, signature

from celeriac.compat import current_execution
from celeriac.context import TaskContext
from celeriac.dependency_scope import DependencyScope
from celeriac.eager import EagerExecution
from celeriac.task import Task

__all__ = ["define_maps"]


def define_maps(sender: Any, **_signal: Any) -> None:
    """Replace ``celery.map`` and ``celery.starmap`` of an app that has just been finalized."""
    app = sender
    for name in ("celery.map", "celery.starmap"):
        app.tasks.pop(name, None)

    def xmap(task: Any, it: Any) -> Any:
        return _call_each(signature(task, app=app).type, [(item,) for item in it])

    def xstarmap(task: Any, it: Any) -> Any:
        return _call_each(signature(task, app=app).type, list(it))

    app.task(name="celery.map", lazy=False)(xmap)
    app.task(name="celery.starmap", lazy=False)(xstarmap)


def _call_each(task: Any, calls: Sequence[Iterable[Any]]) -> list[Any] | Awaitable[list[Any]]:
    """The results, or what waits for them: the worker lets a thread call ``def`` tasks, and its loop wait."""
    if isinstance(task, Task) and task.injected.dependant is not None:
        return _call_each_injected(task, calls)
    results = []
    for index, arguments in enumerate(calls):
        value = task(*arguments)
        if inspect.isawaitable(value):
            return _wait_for_each(task, value, calls[index + 1 :])
        results.append(value)
    return results


async def _wait_for_each(task: Any, first: Awaitable[Any], calls: Sequence[Iterable[Any]]) -> list[Any]:
    """One after the other: like ``def`` tasks, these may rely on that."""
    return [await first, *[await task(*arguments) for arguments in calls]]


async def _call_each_injected(task: Task[..., Any], calls: Sequence[Iterable[Any]]) -> list[Any]:
    """One after the other, each between dependencies of its own; functions in threads."""
    headers = getattr(current_task.request, "message_headers", None) or current_task.request.headers or {}
    execution = current_execution()
    context = TaskContext(execution or EagerExecution(task.name, current_task.request))
    contexts = dict.fromkeys(task.injected.contexts, context)

    def stopped_by() -> BaseException | None:
        return None if execution is None else execution.stop

    results = []
    for arguments in calls:
        args, kwargs = task.schema.place(tuple(arguments), contexts)
        scope = DependencyScope(task.injected, task.app.web_apps, headers, context, stopped_by)
        results.append(await scope.around(partial(_call_one, task, args, kwargs)))
    return results


async def _call_one(
    task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], values: Mapping[str, Any]
) -> Any:
    if task.is_asynchronous:
        return await task(*args, **kwargs, **values)
    return await asyncio.to_thread(task, *args, **kwargs, **values)
