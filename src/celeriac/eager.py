"""Tasks that are run here and now, by Celery's own, synchronous tracer: ``task.apply()``, ``task_always_eager``.

https://docs.celeryq.dev/en/stable/userguide/testing.html
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from celery import states
from celery.exceptions import SoftTimeLimitExceeded

from celeriac import propagation
from celeriac.compat import is_always_eager
from celeriac.handle import R, TaskHandle
from celeriac.steering import Steered
from celeriac.stores.records import TaskEvent, TaskRecord

__all__ = ["EagerExecution", "EagerHandle", "awaited", "home_loop", "run_apart", "run_to_end", "runs_eagerly"]

#: The loop of whoever waits for an eager call: a coroutine runs there, where what it uses belongs.
_home: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("celeriac_home", default=None)


async def runs_eagerly(app: Any) -> bool:
    """Whether ``task_always_eager`` is set."""
    eager = is_always_eager(app)
    if eager is None:
        eager = bool(await asyncio.to_thread(lambda: app.conf.task_always_eager))
    return eager


async def run_apart(function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Make an eager call in a thread; its coroutines run on the loop of the caller."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    context.run(_home.set, loop)
    # A thread of its own: it waits for coroutines, whose eager calls would wait for it if there were no more threads.
    thread = ThreadPoolExecutor(1, thread_name_prefix="celeriac-eager")
    try:
        return await loop.run_in_executor(thread, lambda: context.run(function, *args, **options))
    finally:
        thread.shutdown(wait=False)


def run_to_end(value: Any) -> Any:
    """The result of ``value`` if it can be awaited; ``None`` of an async generator; else ``value`` itself.

    Under a running loop it runs in a thread of its own, and the caller waits for it.
    """
    value = awaited(value)
    if not inspect.isawaitable(value):
        return value
    home = home_loop()
    if _runs_here():
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(contextvars.copy_context().run, asyncio.run, _await(value)).result()
    if home is not None:
        return asyncio.run_coroutine_threadsafe(_await(value), home).result()
    return _run_softly(value)


def home_loop() -> asyncio.AbstractEventLoop | None:
    """The loop, in another thread, of whoever waits for this eager call; ``None`` if nobody does."""
    home = _home.get()
    return home if home is not None and home.is_running() and not _runs_here() else None


def _run_softly(awaitable: Awaitable[Any]) -> Any:
    """``asyncio.run``, in which a soft time limit is raised at the ``await`` where the coroutine is.

    Celery's prefork pool raises it in a signal handler, which mostly is in the loop's own wait.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        steered: Steered | None = None

        async def main() -> Any:
            nonlocal steered
            if not inspect.iscoroutine(awaitable):
                return await awaitable
            this = asyncio.current_task()
            assert this is not None
            steered = Steered(awaitable, this)
            return await steered

        task = loop.create_task(main())
        while True:
            try:
                return loop.run_until_complete(task)
            except SoftTimeLimitExceeded as limit:
                if steered is None or task.done():
                    raise
                steered.throw_in(limit)


def _runs_here() -> bool:
    return asyncio._get_running_loop() is not None


def awaited(value: Any) -> Awaitable[Any]:
    """What a coroutine function or an async generator function has returned, as something to await."""
    return _exhaust(value) if inspect.isasyncgen(value) else value


async def _await(value: Awaitable[Any]) -> Any:
    return await value


async def _exhaust(values: AsyncIterator[Any]) -> None:
    async for _ in values:
        pass


@dataclass(frozen=True, slots=True)
class EagerExecution:
    """What a ``TaskContext`` stands for where Celery's tracer runs the task: nobody follows its progress."""

    name: str
    request: Any

    @property
    def id(self) -> str:
        return str(self.request.id)

    @property
    def owner(self) -> str | None:
        return propagation.owner.get()

    @property
    def request_id(self) -> str | None:
        return propagation.request_id.get()

    def progress(self, current: float, total: float | None, note: str) -> None:
        """Nothing."""

    def emit(self, value: Any) -> None:
        """Nothing."""


class EagerHandle(TaskHandle[R]):
    """What ``enqueue`` returns where ``task_always_eager`` is set: the task has ended, and there is no record of it."""

    __slots__ = ("_ended",)

    def __init__(self, ended: Any, load_result: Callable[[Any], Any] | None = None) -> None:
        super().__init__(ended.id, _no_store, load_result)
        self._ended = ended

    async def record(self) -> TaskRecord:
        """What is known of the task."""
        ended = self._ended
        result = ended.result if ended.state == states.SUCCESS else _described(ended.result)
        return TaskRecord(
            id=self.id, state=ended.state, name=ended.name, result=result, traceback=ended.traceback
        )

    async def result(self, timeout: float | None = None) -> R:
        """What the task returned. Raises what it raised."""
        if self._ended.state in states.PROPAGATE_STATES:
            error = self._ended.result
            raise error if isinstance(error, BaseException) else RuntimeError(error)
        value = self._ended.result
        return cast("R", self._load_result(value) if self._load_result else value)

    async def events(self, after: str | None = None) -> AsyncIterator[TaskEvent]:
        """None: nobody was there to see them."""
        return
        yield

    async def cancel(self) -> bool:
        """False: it has ended."""
        return False


def _described(error: Any) -> dict[str, Any]:
    return {
        "exc_type": type(error).__qualname__,
        "exc_message": [str(argument) for argument in getattr(error, "args", ())],
        "exc_module": type(error).__module__,
    }


def _no_store() -> NoReturn:
    raise LookupError("A task that was run eagerly has no record.")
