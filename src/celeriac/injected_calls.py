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
    """Call a plain function in this thread, with the values of its dependencies, and return what it returned."""
    with _loop_elsewhere() as loop:
        opened: Future[tuple[Mapping[str, Any], Variables]] = Future()
        ended: Future[BaseException | None] = Future()
        holding = asyncio.run_coroutine_threadsafe(_hold(scope, opened, ended), loop)
        value, error = None, None
        try:
            either: tuple[Future[Any], ...] = (opened, holding)
            wait(either, return_when=FIRST_COMPLETED)
            if opened.done():
                values, variables = opened.result()
                context = contextvars.copy_context()
                value = context.run(with_variables, variables, function, values)
        except BaseException as exc:  # noqa: BLE001 - it is raised in the dependencies, and comes back from there
            error = exc
        try:
            ended.set_result(error)
            holding.result()
        finally:
            del error
        return value


async def _hold(
    scope: DependencyScope,
    opened: Future[tuple[Mapping[str, Any], Variables]],
    ended: Future[BaseException | None],
) -> None:
    before = contextvars.copy_context()

    async def call(values: Mapping[str, Any]) -> None:
        opened.set_result((values, changed_variables(before)))
        error = await asyncio.wrap_future(ended)
        if error is not None:
            raise error

    await scope.around(call)


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
