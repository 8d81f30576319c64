"""What one attempt has open: its dependencies, and a request for them to look at."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from celery.exceptions import Ignore, Reject, Retry

from celeriac.context import CONTEXT, TaskContext
from celeriac.dependencies import Injected
from celeriac.errors import InvalidArguments
from celeriac.webapp import WebApps

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from starlette.requests import Request

__all__ = ["DependencyScope", "is_decision"]


class DependencyScope:
    """The dependencies of one attempt; nothing of it is shared with another.

    ``headers`` are those of the message, ``context`` is the task's; ``stopped_by`` says what the asyncio task that has
    called ``open`` was cancelled for. ``close`` is called once, whether or not ``open``
    came to its end, by the asyncio task that has called ``open``.
    """

    __slots__ = ("_context", "_headers", "_injected", "_inner", "_outer", "_stopped_by", "_web_apps")

    def __init__(
        self,
        injected: Injected,
        web_apps: WebApps,
        headers: Mapping[str, Any],
        context: TaskContext,
        stopped_by: Callable[[], BaseException | None] = lambda: None,
    ) -> None:
        self._injected = injected
        self._web_apps = web_apps
        self._headers = headers
        self._context = context
        self._stopped_by = stopped_by
        self._outer: AsyncExitStack | None = None
        self._inner: AsyncExitStack | None = None

    async def open(self) -> Mapping[str, Any]:
        """The values to call the function with. Raises what a dependency raises, and InvalidArguments for a header that
        the message does not have."""
        from celeriac.dependants import dependency_stacks, solve

        web = self._web_apps.current()
        stacks, self._outer, self._inner = dependency_stacks(self._stopped_by)
        # An override may look at the request where what it stands for does not.
        looked_at = self._injected.reads_request or getattr(web.app, "dependency_overrides", None)
        headers = list(_raw_headers(self._headers)) if looked_at else []
        more = {"app": web.app, "state": web.fresh_state(), CONTEXT: self._context, **stacks}
        request = _request(self._injected.task, headers, more)
        values, errors = await solve(self._injected.dependant, request, web.app, self._outer)
        if errors:
            raise InvalidArguments(_sentence(self._injected.task, errors), [dict(error) for error in errors])
        return values

    async def around(self, call: Callable[[Mapping[str, Any]], Awaitable[Any]]) -> Any:
        """Open, await the call with the values, close; returns what the call returned. Raises what is raised first,
        or what a dependency raises in its place."""
        try:
            value = await call(await self.open())
        except BaseException as error:
            try:
                await self.close(error)
            except BaseException as exc:
                if exc is not error and not is_decision(error):
                    raise
            raise
        await self.close()
        return value

    async def close(self, error: BaseException | None = None) -> None:
        """Close what is open, in the reverse order; ``error`` is raised where the dependencies have yielded.

        Raises what they raise. One that swallows ``error`` changes nothing: whoever closes has it still.
        """
        outer, inner = self._outer, self._inner
        if outer is None or inner is None:
            return
        self._outer = self._inner = None
        trace = None if error is None else error.__traceback__
        try:
            async with outer, inner:
                if error is not None:
                    raise error
        except BaseException as exc:
            if exc is error:
                exc.__traceback__ = trace  # it comes from the function, and only passed through here
            raise
        finally:
            del error, trace


def is_decision(error: BaseException) -> bool:
    """Whether a task has said by raising it what is to become of its message: a clean-up that fails does not change
    that."""
    return isinstance(error, (Retry, Ignore, Reject))


def _request(task: str, headers: list[tuple[bytes, bytes]], more: Mapping[str, Any]) -> Request:
    from starlette.requests import Request

    path = f"/{task}"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "celery",
        "path": path,
        "raw_path": path.encode("ascii", "replace"),
        "root_path": "",
        "query_string": b"",
        "path_params": {},
        "headers": headers,
        "client": None,
        "server": None,
        **more,
    }
    return Request(scope, _no_body)


def _raw_headers(headers: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """A message's headers in ASGI's form. A name with underscores is known with hyphens as well: so ``Header()`` asks.

    https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope
    """
    for name, value in headers.items():
        if value is None or isinstance(value, (dict, list, tuple)):
            continue
        raw = (value if isinstance(value, str) else json.dumps(value, default=str)).encode(
            "latin-1", "replace"
        )
        lower = name.lower()
        for known in {lower, lower.replace("_", "-")}:
            yield known.encode("latin-1", "replace"), raw


async def _no_body() -> NoReturn:
    raise RuntimeError("A task has no request body: its arguments are what it was enqueued with.")


def _sentence(task: str, errors: Any) -> str:
    location = errors[0].get("loc", ("", ""))
    if errors[0].get("type") == "missing" and location[0] == "header":
        return (
            f"A dependency of the task {task} wants the header {location[-1]!r}, and the message has none: "
            f"enqueue it by using(headers={{{location[-1]!r}: …}})."
        )
    where = " ".join(map(str, location))
    return f"A dependency of the task {task} cannot be given its {where}: {errors[0].get('msg')}."
