"""Call a task's function between its dependencies: open them, call, close them, each step within the attempt's limits.

They are closed before the result is stored and the message settled: a commit that fails fails the task.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from celery.utils.log import get_logger

from celeriac.autoretry import retries
from celeriac.context import TaskContext
from celeriac.dependency_scope import DependencyScope, is_decision
from celeriac.injected_calls import changed_variables, with_variables
from celeriac.worker.coroutines import Limits, bound, run_coroutine
from celeriac.worker.execution import Execution
from celeriac.worker.profile import TaskProfile
from celeriac.worker.threads import TaskThread

__all__ = ["invoke_injected"]

logger = get_logger(__name__)


async def invoke_injected(
    execution: Execution,
    profile: TaskProfile,
    thread: TaskThread | None,
    call: Callable[[Any, Any], Awaitable[Any]],
    args: Any,
    kwargs: Any,
    limits: Limits,
) -> Any:
    """Open the task's dependencies, call its function with them, close them, and return what the function returned.

    ``call`` calls the function on the loop; with a ``thread`` it is called there instead. Raises what the function
    raised, or a dependency; or ``execution.stop``.
    """
    attempt = _Attempt(execution, profile, thread, limits)
    if not profile.autoretry:
        return await attempt.run(call, args, kwargs)
    try:
        return await attempt.run(call, args, kwargs)
    except BaseException:
        if execution.stop is not None:  # others try it again, or nobody
            raise
        # Around all of it: what a dependency raises is to be retried as much as what the function raises.
        with retries(profile.task):
            raise


class _Attempt:
    def __init__(
        self, execution: Execution, profile: TaskProfile, thread: TaskThread | None, limits: Limits
    ) -> None:
        assert profile.injected is not None
        self._execution = execution
        self._function = profile.call
        self._thread = thread
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._scope = DependencyScope(
            profile.injected,
            execution.task.app.web_apps,
            execution.message.headers,
            TaskContext(execution),
            lambda: execution.stop,
        )

    async def run(self, call: Callable[[Any, Any], Awaitable[Any]], args: Any, kwargs: Any) -> Any:
        try:
            before = contextvars.copy_context()
            kwargs = {**kwargs, **await self._step(self._scope.open())}
            if self._execution.stop is not None:  # handed back meanwhile
                raise self._execution.stop
            if self._thread is None:
                value = await self._step(call(args, kwargs))
            else:
                value = await self._call_in(self._thread, args, kwargs, before)
        except BaseException as exc:
            await self._close_in_error(exc)
            raise
        await self._step(self._scope.close())
        return value

    async def _call_in(self, thread: TaskThread, args: Any, kwargs: Any, before: contextvars.Context) -> Any:
        function = partial(with_variables, changed_variables(before), self._function)
        try:
            value = await thread.run(function, args, kwargs, self._limits, self._spent())
        except BaseException:
            bound(self._execution)
            raise
        # A plain function may still hand back something to wait for.
        return await self._step(value) if inspect.isawaitable(value) else value

    async def _step(self, awaitable: Awaitable[Any]) -> Any:
        """One step, within what is left of the limits; what was stopped has none any more, and is bound otherwise."""
        limits = (None, None) if self._execution.stop is not None else self._limits
        return await run_coroutine(self._execution, awaitable, limits, self._spent())

    async def _close_in_error(self, error: BaseException) -> None:
        """Close with ``error`` raised in the dependencies. Raises what is to take its place, if anything is."""
        try:
            await self._step(self._scope.close(error))
        except BaseException as exc:
            if exc is error:
                return
            if is_decision(error) and self._execution.stop is None:
                # What is to become of the message has been said.
                logger.exception(
                    "Task %s[%s]: a dependency failed in its clean-up",
                    self._execution.name,
                    self._execution.id,
                )
                return
            raise
        finally:
            del error

    def _spent(self) -> float:
        return self._loop.time() - self._started
