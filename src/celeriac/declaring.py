"""``@celery.task`` and its kin: what a decorator makes of a function, as type checkers see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from celeriac.task import Task

__all__ = ["BoundTaskDecorator", "DeclaresTasks", "TaskDecorator"]

P = ParamSpec("P")
R = TypeVar("R")


class TaskDecorator(Protocol):
    """``@celery.task(…)``: takes a function, and keeps its parameters and its result type."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncGenerator[Any, Any]], /) -> Task[P, None]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[Any]], /) -> Task[P, None]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BoundTaskDecorator(Protocol):
    """``@celery.task(bind=True, …)``: the first parameter is the task itself, and no part of the call."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], AsyncGenerator[Any, Any]], /
    ) -> Task[P, None]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], AsyncIterator[Any]], /) -> Task[P, None]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


class DeclaresTasks:
    """What tasks can be declared on: an app, and a router."""

    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> BoundTaskDecorator: ...
    @overload
    def task(self, *, bind: Literal[False] = ..., **options: Any) -> TaskDecorator: ...
    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, AsyncGenerator[Any, Any]], /) -> Task[P, None]: ...
    @overload
    def task(self, function: Callable[P, AsyncIterator[Any]], /) -> Task[P, None]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a task of a function: ``def``, ``async def``, or an async generator, which emits what it yields.

        Options are Celery's. ``bind=True`` passes the task as the first argument. Unlike Celery's, the task belongs
        to this app alone (``shared=False``).
        """
        return self._declare_task(args, options)

    def stub(self, *, name: str | None = None, **options: Any) -> TaskDecorator:
        """Make a typed stand-in of a signature, for a task whose function is in another program.

        It publishes by ``name``, with the options of ``task``, and checks arguments and results by the annotations.
        The function's body is never run. A worker does not take it for the task.
        """
        return self._declare_stub(name, options)

    def _declare_task(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _declare_stub(self, name: str | None, options: dict[str, Any]) -> TaskDecorator:
        raise NotImplementedError
