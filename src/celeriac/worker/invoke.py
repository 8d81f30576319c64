"""Call a task's function: on the loop or in a thread, with its arguments, its time limits and Celery's autoretry."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any

from celeriac.autoretry import retrying
from celeriac.context import TaskContext
from celeriac.worker.coroutines import Limits, limited, run_coroutine
from celeriac.worker.execution import Execution
from celeriac.worker.injecting import invoke_injected
from celeriac.worker.profile import Kind, TaskProfile
from celeriac.worker.threads import TaskThread

__all__ = ["invoke", "invoke_with_files"]

#: An async generator that never suspends gives way to the loop after so many values.
_VALUES_IN_A_ROW = 100


async def invoke_with_files(execution: Execution, profile: TaskProfile, thread: TaskThread | None) -> Any:
    """As :func:`invoke`, with the files of the message open meanwhile."""
    assert profile.files is not None
    hard, _ = _limits(execution, profile)
    with limited(execution, (hard, None)):  # a storage that does not answer counts, too
        async with profile.files.opened(execution) as arguments:
            return await invoke(execution, profile, thread, arguments)


async def invoke(
    execution: Execution,
    profile: TaskProfile,
    thread: TaskThread | None,
    arguments: tuple[Any, Any] | None = None,
) -> Any:
    """Run the task's function to its end, and return what it returned. Raises what it raised, or ``execution.stop``.

    A ``def`` task brings its thread. ``arguments`` are those of the message, unless they are given.
    """
    args, kwargs = _loaded(execution, profile, arguments)
    limits = _limits(execution, profile)
    if profile.injected is not None:
        call = partial(_call, execution, profile)
        return await invoke_injected(execution, profile, thread, call, args, kwargs, limits)
    if thread is not None:
        value = await thread.run(profile.call, args, kwargs, limits)
        # A plain function may still hand back something to wait for.
        return await run_coroutine(execution, value, limits) if inspect.isawaitable(value) else value
    if profile.autoretry:
        return await run_coroutine(execution, _retrying(execution, profile, args, kwargs), limits)
    return await run_coroutine(execution, _call(execution, profile, args, kwargs), limits)


def _loaded(execution: Execution, profile: TaskProfile, arguments: tuple[Any, Any] | None) -> tuple[Any, Any]:
    if execution.stop is not None:
        raise execution.stop
    args, kwargs = arguments or (execution.message.args, execution.message.kwargs)
    if profile.loads_arguments and profile.schema is not None:
        args, kwargs = profile.schema.load(args, kwargs)
    elif profile.places is not None:
        args, kwargs = profile.places(args, kwargs)
    if profile.context:
        kwargs = {**kwargs, **dict.fromkeys(profile.context, TaskContext(execution))}
    return args, kwargs


def _call(execution: Execution, profile: TaskProfile, args: Any, kwargs: Any) -> Awaitable[Any]:
    result = profile.call(*args, **kwargs)
    return _emit_all(execution, result) if profile.kind is Kind.GENERATOR else result


async def _retrying(execution: Execution, profile: TaskProfile, args: Any, kwargs: Any) -> Any:
    return await retrying(profile.task, _call(execution, profile, args, kwargs))


async def _emit_all(execution: Execution, values: AsyncIterator[Any]) -> None:
    async with contextlib.aclosing(values) as stream:  # type: ignore[type-var]
        count = 0
        async for value in stream:
            execution.emit(value)
            count += 1
            if count % _VALUES_IN_A_ROW == 0:
                await asyncio.sleep(0)


def _limits(execution: Execution, profile: TaskProfile) -> Limits:
    """Hard and soft limit in seconds; the message's win over the task's."""
    message = execution.message
    hard = message.time_limit if message.time_limit is not None else profile.time_limit
    soft = message.soft_time_limit if message.soft_time_limit is not None else profile.soft_time_limit
    return hard or None, soft or None
