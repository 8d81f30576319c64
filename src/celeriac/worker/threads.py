"""Run ``def`` tasks in threads, no more than there are.

A thread cannot be stopped from outside in Python: an exception is put in its way and raised at its next bytecode, so
a call that waits in C (a socket, ``time.sleep``) goes on until it returns. The worker does not wait for one that was
stopped: another thread takes its place until it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from celeriac.worker.announce import UserCall, perform_until_awaitable
from celeriac.worker.coroutines import Interruptible, Limits, limited, runner_of, wait_interruptibly
from celeriac.worker.execution import Execution
from celeriac.worker.log import log_soft_limit

__all__ = ["TaskThread", "TaskThreads"]

logger = get_logger(__name__)


class _Outcome:
    """What a call in a thread returned or raised. A future cannot hold every exception, and holds one for too long."""

    __slots__ = ("_error", "_value")

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        try:
            self._value = function(*args)
        except BaseException as exc:  # noqa: BLE001 - it is raised again where the call is waited for
            self._error = exc

    def take(self) -> Any:
        """The value, or raise the error; once.

        The frames of the thread have this object, and the error has the frames: all locals of a failed task would live
        until a collection.
        """
        error, self._error = self._error, None
        if error is None:
            value, self._value = self._value, None
            return value
        try:
            raise error
        finally:
            del error


class TaskThreads:
    """The threads of one worker. ``free`` is taken before a task starts, so that nothing waits inside the executor.

    ``prepare`` is called first in each thread.
    """

    def __init__(self, size: int, *, prepare: Callable[[], object] | None = None) -> None:
        self.size = size
        self._free: asyncio.Semaphore | None = None
        self.executor = ThreadPoolExecutor(size, thread_name_prefix="celeriac-task", initializer=prepare)

    @property
    def free(self) -> asyncio.Semaphore:
        """One permit for each thread; of the loop that the worker runs on."""
        if self._free is None:
            self._free = asyncio.Semaphore(self.size)
        return self._free

    def grow(self, by: int) -> None:
        """Have more threads. Called on the loop."""
        free = self.free
        self.size += by
        self._resize(+by)
        for _ in range(by):
            free.release()

    def shutdown(self) -> None:
        """Take no more calls; what runs is left to itself."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def replace(self, lost: asyncio.Future[Any]) -> None:
        """Have another thread until this call returns, which nobody waits for any more."""
        self._resize(+1)
        lost.add_done_callback(self._returned)

    def _returned(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()
        self._resize(-1)

    def _resize(self, by: int) -> None:
        # concurrent.futures.thread.ThreadPoolExecutor._max_workers; threads are made when work is submitted.
        self.executor._max_workers += by
        if by > 0:
            with contextlib.suppress(RuntimeError):
                self.executor.submit(lambda: None)


class TaskThread:
    """The thread that an execution's function is called in.

    A ``kept`` one stays with the execution until ``release``: receivers and handlers are called in it, too. What they
    keep for the thread, such as a database session, is the function's as well, as in Celery's own pools.
    """

    def __init__(self, threads: TaskThreads, execution: Execution, *, kept: bool) -> None:
        self._threads = threads
        self._execution = execution
        self._kept = kept
        self._permitted = False
        self._context: contextvars.Context | None = None
        self._lane: _Lane | None = None

    async def take(self) -> None:
        """Wait until a thread is free. Raises ``execution.stop`` if that comes first."""
        await wait_interruptibly(self._execution, self._threads.free.acquire)
        self._permitted = True

    def release(self) -> None:
        """Give the thread back, if that has not been done."""
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        if self._permitted:
            self._permitted = False
            self._threads.free.release()

    async def run(
        self, function: Callable[..., Any], args: Any, kwargs: Any, limits: Limits, spent: float = 0.0
    ) -> Any:
        """Call the task's function, ``spent`` seconds of whose limits are over.

        Raises what it raises, or ``execution.stop`` if that is set.
        """
        execution = self._execution
        runner = runner_of(execution)
        call = _ThreadCall(function, args, kwargs)
        future = self._submit(call)

        def interrupt(reason: BaseException) -> None:
            call.raise_in(type(reason))
            runner.cancel()

        def on_soft(limit: float) -> None:
            log_soft_limit(execution, limit)
            call.raise_in(SoftTimeLimitExceeded)

        try:
            async with Interruptible(execution, interrupt):
                with limited(execution, limits, on_soft, spent):
                    outcome = await asyncio.shield(future)
        finally:
            if not future.done():
                self._leave(future)
            if not self._kept:
                self.release()
        try:
            return outcome.take()
        except BaseException as exc:
            if execution.stop is None:
                raise
            raise execution.stop from exc

    async def perform(self, calls: Sequence[UserCall]) -> None:
        """Make the calls one after the other in the thread; those of coroutine functions on the event loop."""
        if not calls:
            return
        rest = iter(calls)
        while True:
            pending = (await self._submit(partial(_Outcome, perform_until_awaitable, rest))).take()
            if pending is None:
                return
            call, awaitable = pending
            await call.finish(awaitable)

    def _submit(self, function: Callable[[], _Outcome]) -> asyncio.Future[_Outcome]:
        if self._context is None:
            self._context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        if not self._kept:
            return loop.run_in_executor(self._threads.executor, self._context.run, function)
        if self._lane is None:
            self._lane = _Lane(self._threads.executor, self._context, loop)
        return self._lane.submit(function)

    def _leave(self, future: asyncio.Future[Any]) -> None:
        execution = self._execution
        logger.warning("Task %s[%s] was stopped, but its thread goes on.", execution.name, execution.id)
        self._context = None  # entered by what goes on
        if self._lane is not None:
            self._lane.close()
            future, self._lane = self._lane.ended, None
        self._threads.replace(future)


class _Lane:
    """A thread that takes one call after the other, until it is closed."""

    def __init__(
        self, executor: ThreadPoolExecutor, context: contextvars.Context, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._loop = loop
        self._calls: SimpleQueue[tuple[Callable[[], _Outcome], asyncio.Future[_Outcome]] | None]
        self._calls = SimpleQueue()
        self.ended: asyncio.Future[None] = loop.run_in_executor(executor, context.run, self._serve)

    def submit(self, function: Callable[[], _Outcome]) -> asyncio.Future[_Outcome]:
        future: asyncio.Future[_Outcome] = self._loop.create_future()
        self._calls.put((function, future))
        return future

    def close(self) -> None:
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            outcome = function()
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
                self._loop.call_soon_threadsafe(_answer, future, outcome)
            # The thread may wait for long, and must not keep what it has called, and what that raised.
            del call, function, future, outcome


class _ThreadCall:
    """A call in a thread that an exception can be put in the way of."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._lock = threading.Lock()
        self._ident: int | None = None
        self._withdrawn: type[BaseException] | None = None

    def __call__(self) -> _Outcome:
        return _Outcome(self._call)

    def _call(self) -> Any:
        with self._lock:
            if self._withdrawn is not None:
                raise self._withdrawn
            self._ident = threading.get_ident()
        try:
            return self._function(*self._args, **self._kwargs)
        finally:
            with self._lock:
                ident, self._ident = self._ident, None
                if self._withdrawn is not None:
                    # What has not been raised by now must not be raised in what the thread does next.
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident or 0), None)

    def raise_in(self, exception: type[BaseException]) -> None:
        """Raise at the thread's next bytecode, or instead of the call if it has not begun."""
        with self._lock:
            self._withdrawn = exception
            if self._ident is not None:
                ident = ctypes.c_ulong(self._ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(exception))


def _answer(future: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
