"""Call a task's function between its dependencies where Celery's tracer runs it, which awaits nothing.

That is ``task.apply()``, ``task_always_eager``, and the children of Celery's own pools. Dependencies need a loop, and
stay open in one asyncio task while a plain function runs: the loop is in another thread then.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any

from celeriac.dependency_scope import DependencyScope
from celeriac.eager import home_loop
from celeriac.steering import Steered

__all__ = ["Variables", "call_here", "changed_variables", "is_asynchronous", "with_variables"]

Variables = list[tuple[contextvars.ContextVar[Any], Any]]

_MISSING = object()


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Whether it is a coroutine function or an async generator function."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def changed_variables(before: contextvars.Context) -> Variables:
    """The context variables that have been set since ``before``."""
    after = contextvars.copy_context()
    return [(name, value) for name, value in after.items() if before.get(name, _MISSING) is not value]


def with_variables(variables: Variables, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in a context in which dependencies have not run, but what they have set is set."""
    for name, value in variables:
        name.set(value)
    return function(*args, **kwargs)


def call_here(scope: DependencyScope, function: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Call a plain function in this thread, with the values of its dependencies, and return what it returned.

    What is raised in this thread meanwhile, as Celery's pool does at a soft limit, is raised in the dependencies.
    """
    with _loop_elsewhere() as loop:
        held = _Held(scope, loop)
        value, error = None, None
        try:
            either: tuple[Future[Any], ...] = (held.opened, held.holding)
            wait(either, return_when=FIRST_COMPLETED)
            if held.opened.done():
                values, variables = held.opened.result()
                context = contextvars.copy_context()
                value = context.run(with_variables, variables, function, values)
        except BaseException as exc:  # noqa: BLE001 - it is raised in the dependencies, and comes back from there
            error = exc
        try:
            if error is not None and not held.opened.done():
                held.stop(error)
            held.end(error)
        finally:
            del error
        return value


class _Held:
    """Dependencies that a loop in another thread opens, and holds open until ``end``."""

    def __init__(self, scope: DependencyScope, loop: asyncio.AbstractEventLoop) -> None:
        self._scope = scope
        self._loop = loop
        self._steered: Steered | None = None
        self.opened: Future[tuple[Mapping[str, Any], Variables]] = Future()
        self._ended: Future[BaseException | None] = Future()
        self.holding = asyncio.run_coroutine_threadsafe(self._hold(), loop)

    def stop(self, error: BaseException) -> None:
        """Raise this where they are being opened or closed."""
        self._loop.call_soon_threadsafe(self._stop, error)

    def end(self, error: BaseException | None) -> None:
        """Close them, with ``error`` raised where they have yielded, and wait for that. Raises what they raise."""
        self._ended.set_result(error)
        while True:
            try:
                self.holding.result()
            except BaseException as exc:
                if self.holding.done():
                    raise
                self.stop(exc)
            else:
                return

    async def _hold(self) -> None:
        before = contextvars.copy_context()

        async def call(values: Mapping[str, Any]) -> None:
            self.opened.set_result((values, changed_variables(before)))
            error = await asyncio.wrap_future(self._ended)
            if error is not None:
                raise error

        this = asyncio.current_task()
        assert this is not None
        self._steered = Steered(self._scope.around(call), this)
        await self._steered

    def _stop(self, error: BaseException) -> None:
        if self._steered is None:  # it is about to begin
            self._loop.call_soon(self._stop, error)
        else:
            self._steered.throw_in(error)


@contextmanager
def _loop_elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in another thread: that of whoever waits for this call, or a new one."""
    home = home_loop()
    if home is not None:
        yield home
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run, args=(loop,), name="celeriac-dependencies", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
