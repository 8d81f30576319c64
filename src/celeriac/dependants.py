"""FastAPI's dependencies outside of a request: the only file that touches what FastAPI does not document.

Each name with its upstream symbol. ``tests/unit/dependencies/test_dependants.py`` pins every one of them, so that an
upgrade of FastAPI fails there and not in a worker. Importing this file imports FastAPI.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from anyio import CancelScope
from fastapi import FastAPI, params
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.dependencies.utils import get_dependant, solve_dependencies
from fastapi.security import SecurityScopes
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

__all__ = [
    "Refusal",
    "build",
    "dependency_stacks",
    "is_injected",
    "needs_request",
    "overrides_of",
    "reads_request",
    "refusals",
    "solve",
]

logger = logging.getLogger("celeriac")

T = TypeVar("T")

#: What FastAPI fills in by its type alone: ``fastapi.dependencies.utils.add_non_field_param_to_dependency``.
#: ``HTTPConnection`` is what both requests and web sockets are.
_SPECIAL = (HTTPConnection, Response, BackgroundTasks, SecurityScopes)

#: ``fastapi.params.Depends`` is what ``Depends(…)`` and ``Security(…)`` make, ``Header`` what ``Header(…)`` makes.
_MARKERS = (params.Depends, params.Header)

#: The lists of ``fastapi.dependencies.models.Dependant`` that hold what only a request could have.
_FIELDS = {
    "path_params": "a path parameter",
    "query_params": "a query parameter",
    "cookie_params": "a cookie",
    "body_params": "part of a request's body",
}

_FIELD_CURE = "give it a default, or read a header of the message with Header()"

#: The attributes of ``Dependant`` that name a parameter of a special type, with what to do instead.
_ATTRIBUTES = {
    "response_param_name": ("a Response", "a task answers no request; remove the parameter"),
    "background_tasks_param_name": ("BackgroundTasks", "enqueue a task instead"),
    "websocket_param_name": ("a WebSocket", "take an HTTPConnection or a Request, which tasks have"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A parameter that no task can fill in. ``dependency`` is ``None`` for a parameter of the task itself."""

    dependency: str | None
    parameter: str
    what: str
    cure: str


def is_injected(annotation: Any, default: Any) -> bool:
    """Whether FastAPI would fill in a parameter without a value from the caller. ``annotation`` is resolved."""
    annotation = getattr(annotation, "__value__", annotation)  # ``type X = …``
    if isinstance(default, _MARKERS):
        return True
    if get_origin(annotation) is Annotated:
        kind, *metadata = get_args(annotation)
        if any(isinstance(each, _MARKERS) for each in metadata):
            return True
        annotation = kind
    return isinstance(annotation, type) and issubclass(annotation, _SPECIAL)


def build(name: str, parameters: Sequence[inspect.Parameter]) -> Any:
    """The graph of what the parameters depend on: ``fastapi.dependencies.models.Dependant``.

    Raises what FastAPI raises for what it cannot use: ``FastAPIError``, ``AssertionError``, ``ValueError``.
    """

    def function(**values: Any) -> Any:
        """Stands for the task's function, of which FastAPI sees the injected parameters alone."""

    function.__name__ = function.__qualname__ = name
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return get_dependant(path="", call=function)


def reads_request(dependant: Any) -> bool:
    """Whether anything in a graph looks at the request: of the others nobody need know what is in it."""
    return bool(
        dependant.request_param_name
        or dependant.http_connection_param_name
        or dependant.header_params
        or dependant.cookie_params
        or any(map(reads_request, dependant.dependencies))
    )


def needs_request(dependency: Any) -> str | None:
    """The name of a callable, the dependency or one below it, that takes a ``Request``, which a WebSocket has not.

    FastAPI would call it without one.
    """
    return _needs_request(get_dependant(path="", call=dependency))


def _needs_request(dependant: Any) -> str | None:
    call = dependant.call
    if dependant.request_param_name:
        return getattr(call, "__qualname__", type(call).__qualname__)
    return next(filter(None, map(_needs_request, dependant.dependencies)), None)


def refusals(dependant: Any, *, own: bool = True) -> Iterator[Refusal]:
    """What in a graph no task can have: parameters without a default that only a request could fill in."""
    call = dependant.call
    dependency = None if own else getattr(call, "__qualname__", type(call).__qualname__)
    for attribute, what in _FIELDS.items():
        for field in getattr(dependant, attribute):
            if field.field_info.is_required():
                yield Refusal(dependency, field.name, what, _FIELD_CURE)
    for attribute, (what, cure) in _ATTRIBUTES.items():
        if name := getattr(dependant, attribute):
            yield Refusal(dependency, name, what, cure)
    for sub in dependant.dependencies:
        yield from refusals(sub, own=False)


def dependency_stacks(
    stopped_by: Callable[[], BaseException | None] = lambda: None,
) -> tuple[dict[str, Any], AsyncExitStack, AsyncExitStack]:
    """What ``solve_dependencies`` wants to find in a request's scope, as ``fastapi.routing.request_response`` does it.

    The first stack is that of dependencies with ``scope="request"``, the default, which are closed last; the other that
    of those with ``scope="function"``. ``stopped_by`` says what the attempt was cancelled for.
    """
    outer, inner = _Stack(stopped_by), _Stack(stopped_by)
    return {"fastapi_inner_astack": outer, "fastapi_function_astack": inner}, outer, inner


def overrides_of(app: Any) -> Any:
    """The app, if it has ``dependency_overrides``."""
    return app if isinstance(app, FastAPI) else None


async def solve(
    dependant: Any, request: Request, app: Any, stack: AsyncExitStack
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The values of the parameters, and what is wrong with them in pydantic's form. Raises what a dependency raises."""
    solved = await solve_dependencies(
        request=request,
        dependant=dependant,
        dependency_overrides_provider=overrides_of(app),
        async_exit_stack=stack,
        embed_body_fields=False,
    )
    return solved.values, solved.errors


class _Stack(AsyncExitStack):
    """Closes what a thread has opened, too, when nobody waited for it any more; and tells dependencies why.

    FastAPI opens a plain generator in a thread, which no cancellation stops: what comes of it would stay open. And when
    one dependency is stopped in its clean-up, those around it see ``stopped_by``, and no bare cancellation.
    """

    def __init__(self, stopped_by: Callable[[], BaseException | None]) -> None:
        super().__init__()
        self._stopped_by = stopped_by

    async def enter_async_context(self, cm: AbstractAsyncContextManager[T]) -> T:
        """As the base class does; what a thread opens is closed, whenever it has done it."""
        threaded = _opens_in_thread(cm)
        value = await (self._enter_in_thread(cm) if threaded else cm.__aenter__())
        self.push_async_exit(partial(self._exit, cm, threaded))
        return value

    async def _exit(
        self,
        cm: AbstractAsyncContextManager[Any],
        threaded: bool,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if isinstance(error, asyncio.CancelledError) and (stop := self._stopped_by()) is not None:
            kind, error, trace = type(stop), stop, stop.__traceback__
        leaving = cm.__aexit__(kind, error, trace)
        return await (_waited_for(leaving) if threaded else leaving)

    @staticmethod
    async def _enter_in_thread(cm: AbstractAsyncContextManager[T]) -> T:
        scope = CancelScope()
        entering = asyncio.create_task(_entered(cm, scope))
        try:
            return await asyncio.shield(entering)
        except BaseException:  # a limit's, too
            if not _has_failed(entering):
                scope.cancel()  # one that still waits for a thread does not open; one that has it comes to its end
                closing = asyncio.create_task(_close_late(cm, entering))
                _closing.add(closing)
                closing.add_done_callback(_closing.discard)
            raise


#: What closes dependencies that were opened too late. The loop itself keeps no tasks alive.
_closing: set[asyncio.Task[None]] = set()


def _opens_in_thread(cm: Any) -> bool:
    """Whether it is ``fastapi.concurrency.contextmanager_in_threadpool``, or that in a wrapper of FastAPI's.

    ``contextlib`` keeps the function, and what it is called with, as ``func`` and ``args`` until it is entered.
    """
    while cm is not None:
        if getattr(cm, "func", None) is contextmanager_in_threadpool.__wrapped__:  # type: ignore[attr-defined]
            return True
        cm = next(iter(getattr(cm, "args", ())), None)
    return False


async def _entered(cm: AbstractAsyncContextManager[T], scope: CancelScope) -> T:
    with scope:
        return await cm.__aenter__()
    raise asyncio.CancelledError


async def _waited_for(leaving: Coroutine[Any, Any, T]) -> T:
    """Wait for a clean-up in a thread, even when that is cancelled, once: the thread uses what is to be closed next."""
    closing = asyncio.create_task(leaving)
    try:
        return await asyncio.shield(closing)
    except BaseException:
        if not closing.done():
            await asyncio.wait((closing,))
        if not closing.cancelled():
            closing.exception()  # who was stopped ends in that
        raise


def _has_failed(entering: asyncio.Task[Any]) -> bool:
    return entering.done() and (entering.cancelled() or entering.exception() is not None)


async def _close_late(cm: AbstractAsyncContextManager[Any], entering: asyncio.Task[Any]) -> None:
    await asyncio.wait((entering,))
    if _has_failed(entering):
        return
    error = asyncio.CancelledError()
    try:
        await cm.__aexit__(type(error), error, None)
    except asyncio.CancelledError:
        return
    except Exception:
        logger.exception("A dependency that was opened too late failed in its clean-up")
