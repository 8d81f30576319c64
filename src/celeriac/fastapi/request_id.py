"""Each request has an id: the caller's own, or one that is made here. Tasks that it enqueues carry it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from celeriac.calls import new_id
from celeriac.propagation import is_request_id, request_id

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from celeriac.app import Celery

__all__ = ["RequestIdMiddleware"]

#: The messages with which an answer begins.
_BEGINNINGS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class RequestIdMiddleware:
    """ASGI middleware: takes the request's id from its header or makes one, and says it in the answer.

    An id is 1 to 128 visible ASCII characters; anything else is replaced. While the request is served it is in
    ``celeriac.propagation.request_id``, and from there it goes with every task. Where something further out has set
    that variable, nothing is done.

    Args:
        app: What serves the request.
        header: The name of the header.
        celery: Whose setting ``celeriac_request_id_header`` names the header, if ``header`` does not.
    """

    def __init__(self, app: ASGIApp, *, header: str | None = None, celery: Celery | None = None) -> None:
        self._app = app
        self._celery = celery
        self._name = header.lower().encode() if header else b"x-request-id" if celery is None else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan" or request_id.get() is not None:
            await self._app(scope, receive, send)
            return
        name = self._name or await asyncio.to_thread(self._read_setting)
        asked = _asked(scope, name)
        said = (name, asked.encode())

        async def echo(message: Message) -> None:
            if message["type"] in _BEGINNINGS:
                headers = message["headers"] = list(message.get("headers") or ())
                if all(key.lower() != name for key, _ in headers):
                    headers.append(said)
            await send(message)

        token = request_id.set(asked)
        try:
            await self._app(scope, receive, echo)
        finally:
            request_id.reset(token)

    def _read_setting(self) -> bytes:
        """Not before the first request: until then the configuration may be completed. It may read files."""
        celery: Any = self._celery
        self._name = celery.settings.request_id_header.lower().encode()
        return self._name


def _asked(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            if is_request_id(text):
                return text
            break
    return new_id()
