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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from celeriac.worker.coroutines import Limits, absorb_cancellation, limited
from celeriac.worker.execution import Execution

__all__ = ["TaskThreads"]

logger = get_logger(__name__)


class TaskThreads:
    """The threads of one worker. ``free`` is taken before a task starts, so that nothing waits inside the executor."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: asyncio.Semaphore | None = None
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="celeriac-task")

    @property
    def free(self) -> asyncio.Semaphore:
        """One permit for each thread; of the loop that the worker runs on."""
        if self._free is None:
            self._free = asyncio.Semaphore(self.size)
        return self._free

    def shutdown(self) -> None:
        """Take no more calls; what runs is left to itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def run(
        self, execution: Execution, function: Callable[..., Any], args: Any, kwargs: Any, limits: Limits
    ) -> Any:
        """Call in a thread, with a permit of ``free``, given back here. Raises ``execution.stop`` if that is set."""
        runner = execution.runner
        assert runner is not None
        call = _ThreadCall(function, args, kwargs)
        context = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(self._executor, context.run, call)

        def interrupt(reason: BaseException) -> None:
            call.raise_in(type(reason))
            runner.cancel()

        execution.interrupt = interrupt
        try:
            with limited(execution, limits, lambda _limit: call.raise_in(SoftTimeLimitExceeded)):
                value = await asyncio.shield(future)
        except BaseException as exc:
            if execution.stop is None:
                raise
            raise execution.stop from exc
        finally:
            execution.interrupt = None
            self._give_back(execution, future)
            # It has the exception, which has this frame: all locals of a failed task would live until a collection.
            del future
            if runner.cancelling():
                await absorb_cancellation(runner)
        return value

    def _give_back(self, execution: Execution, future: asyncio.Future[Any]) -> None:
        self.free.release()
        if future.done():
            _forget(future)
            return
        logger.warning("Task %s[%s] was stopped, but its thread goes on.", execution.name, execution.id)
        self._resize(+1)
        future.add_done_callback(self._returned)

    def _returned(self, future: asyncio.Future[Any]) -> None:
        _forget(future)
        self._resize(-1)

    def _resize(self, by: int) -> None:
        # concurrent.futures.thread.ThreadPoolExecutor._max_workers; threads are made when work is submitted.
        self._executor._max_workers += by
        if by > 0:
            with contextlib.suppress(RuntimeError):
                self._executor.submit(lambda: None)


class _ThreadCall:
    """A call in a thread that an exception can be put in the way of."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._lock = threading.Lock()
        self._ident: int | None = None
        self._withdrawn: type[BaseException] | None = None

    def __call__(self) -> Any:
        with self._lock:
            if self._withdrawn is not None:
                raise self._withdrawn
            self._ident = threading.get_ident()
        try:
            return self._function(*self._args, **self._kwargs)
        finally:
            with self._lock:
                self._ident = None

    def raise_in(self, exception: type[BaseException]) -> None:
        """Raise at the thread's next bytecode, or instead of the call if it has not begun."""
        with self._lock:
            if self._ident is None:
                self._withdrawn = exception
            else:
                ident = ctypes.c_ulong(self._ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(exception))


def _forget(future: asyncio.Future[Any]) -> None:
    # Nobody waits for it any more, and it must not end as "exception was never retrieved".
    if not future.cancelled():
        future.exception()
