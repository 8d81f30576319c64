"""Call a task's function: on the loop or in a thread, under its time limits, and stop it when it has to be.

A coroutine can be stopped at any ``await``. A thread cannot be stopped from outside in Python: the exception is put
in its way and raised at its next bytecode, so a call that waits in C (a socket, ``time.sleep``) goes on until it
returns; after a hard limit the worker no longer waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, TimeLimitExceeded
from celery.utils.time import get_exponential_backoff_interval

from celeriac.context import TaskContext
from celeriac.worker.execution import Execution
from celeriac.worker.profile import Kind, TaskProfile

__all__ = ["invoke"]

#: Seconds between two attempts to cancel a coroutine that will not go.
_INSIST = 1.0


async def invoke(execution: Execution, profile: TaskProfile, threads: Executor) -> Any:
    """Run the task's function to its end, and return what it returned. Raises what it raised, or ``execution.stop``."""
    args, kwargs = execution.message.args, execution.message.kwargs
    if profile.schema is not None:
        args, kwargs = profile.schema.load(args, kwargs)
    if profile.context:
        kwargs = {**kwargs, **dict.fromkeys(profile.context, TaskContext(execution))}
    if profile.kind is Kind.FUNCTION:
        value = await _run_in_thread(execution, profile, threads, args, kwargs)
        # A plain function may still hand back something to wait for.
        return await _run_on_loop(execution, profile, value) if inspect.isawaitable(value) else value
    if profile.autoretry:
        return await _run_on_loop(execution, profile, _with_autoretry(execution, profile, args, kwargs))
    return await _run_on_loop(execution, profile, _call(execution, profile, args, kwargs))


def _call(execution: Execution, profile: TaskProfile, args: Any, kwargs: Any) -> Awaitable[Any]:
    result = profile.call(*args, **kwargs)
    return _emit_all(execution, result) if profile.kind is Kind.GENERATOR else result


async def _emit_all(execution: Execution, values: AsyncIterator[Any]) -> None:
    async with contextlib.aclosing(values) as stream:  # type: ignore[type-var]
        async for value in stream:
            execution.emit(value)


async def _with_autoretry(execution: Execution, profile: TaskProfile, args: Any, kwargs: Any) -> Any:
    """Celery's ``autoretry_for``, ``retry_backoff``, … (``celery.app.autoretry``), for coroutines."""
    task = profile.task
    try:
        return await _call(execution, profile, args, kwargs)
    except (Ignore, Reject, Retry):
        raise
    except tuple(getattr(task, "dont_autoretry_for", ())):
        raise
    except tuple(task.autoretry_for) as exc:
        options = dict(getattr(task, "retry_kwargs", {}))
        backoff = float(getattr(task, "retry_backoff", False))
        if backoff:
            options["countdown"] = get_exponential_backoff_interval(
                factor=int(max(1.0, backoff)),
                retries=task.request.retries,
                maximum=int(getattr(task, "retry_backoff_max", 600)),
                full_jitter=getattr(task, "retry_jitter", True),
            )
        raise task.retry(exc=exc, **options) from exc


def _limits(execution: Execution, profile: TaskProfile) -> tuple[float | None, float | None]:
    """Hard and soft limit in seconds; the message's win over the task's."""
    message = execution.message
    hard = message.time_limit if message.time_limit is not None else profile.time_limit
    soft = message.soft_time_limit if message.soft_time_limit is not None else profile.soft_time_limit
    return hard or None, soft or None


@contextlib.contextmanager
def _limited(
    execution: Execution, hard: float | None, soft: float | None, on_soft: Callable[[float], None]
) -> Iterator[None]:
    """Start the time limits, and forget them afterwards."""
    loop = asyncio.get_running_loop()
    timers = []
    if soft is not None:
        timers.append(loop.call_later(soft, on_soft, soft))
    if hard is not None:
        timers.append(loop.call_later(hard, lambda: execution.halt(TimeLimitExceeded(hard))))
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


async def _run_on_loop(execution: Execution, profile: TaskProfile, awaitable: Awaitable[Any]) -> Any:
    runner = execution.runner
    assert runner is not None
    hard, soft = _limits(execution, profile)
    execution.interrupt = partial(_cancel, execution, runner)
    try:
        if hard is None and soft is None:
            return await awaitable
        return await _run_limited(execution, awaitable, runner, hard, soft)
    except asyncio.CancelledError:
        if execution.stop is None:
            raise
        while runner.uncancel():
            pass
        raise execution.stop from None
    finally:
        execution.interrupt = None


def _cancel(execution: Execution, runner: asyncio.Task[None], reason: BaseException) -> None:
    """Cancel a coroutine, and again for as long as it does not go."""
    if execution.interrupt is not None:
        runner.cancel()
        asyncio.get_running_loop().call_later(_INSIST, _cancel, execution, runner, reason)


async def _run_limited(
    execution: Execution,
    awaitable: Awaitable[Any],
    runner: asyncio.Task[None],
    hard: float | None,
    soft: float | None,
) -> Any:
    steered = _Steered(awaitable, runner) if soft is not None and inspect.iscoroutine(awaitable) else None

    def on_soft(limit: float) -> None:
        if steered is not None:
            steered.throw_in(SoftTimeLimitExceeded(limit))

    with _limited(execution, hard, soft, on_soft):
        return await (steered or awaitable)


class _Steered:
    """Awaits a coroutine, and can raise an exception of choice at the ``await`` where it is."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], runner: asyncio.Task[Any]) -> None:
        self._coroutine = coroutine
        self._runner = runner
        self._pending: BaseException | None = None

    def throw_in(self, exception: BaseException) -> None:
        """Raise in the coroutine: the loop can only cancel, and ``__await__`` makes the exception of it."""
        self._pending = exception
        self._runner.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        error: BaseException | None = None
        while True:
            try:
                waiting_for = coroutine.throw(error) if error is not None else coroutine.send(None)
            except StopIteration as stop:
                return stop.value
            error = None
            try:
                yield waiting_for
            except asyncio.CancelledError as cancelled:
                error = cancelled
                if self._pending is not None:
                    error, self._pending = self._pending, None
                    self._runner.uncancel()
            except BaseException as exc:  # noqa: BLE001 - what the loop throws in is the coroutine's
                error = exc


class _ThreadCall:
    """A call in a thread that an exception can be put in the way of."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._lock = threading.Lock()
        self._ident: int | None = None

    def __call__(self) -> Any:
        with self._lock:
            self._ident = threading.get_ident()
        try:
            return self._function(*self._args, **self._kwargs)
        finally:
            with self._lock:
                self._ident = None

    def raise_in(self, exception: type[BaseException]) -> None:
        """Raise at the thread's next bytecode, if the call still runs."""
        with self._lock:
            if self._ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._ident), ctypes.py_object(exception)
                )


async def _run_in_thread(
    execution: Execution, profile: TaskProfile, threads: Executor, args: Any, kwargs: Any
) -> Any:
    runner = execution.runner
    assert runner is not None
    call = _ThreadCall(profile.call, args, kwargs)
    future = asyncio.get_running_loop().run_in_executor(threads, contextvars.copy_context().run, call)

    def interrupt(reason: BaseException) -> None:
        call.raise_in(type(reason))
        future.add_done_callback(_forget)
        runner.cancel()

    execution.interrupt = interrupt
    hard, soft = _limits(execution, profile)
    try:
        with _limited(execution, hard, soft, lambda _limit: call.raise_in(SoftTimeLimitExceeded)):
            return await asyncio.shield(future)
    except asyncio.CancelledError:
        if execution.stop is None:
            raise
        while runner.uncancel():
            pass
        raise execution.stop from None
    finally:
        execution.interrupt = None


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
