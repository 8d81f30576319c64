"""How much of an upload a route reads before it refuses: counted as it comes, whatever its headers say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from celeriac.errors import UploadTooLarge
from celeriac.fastapi.errors import ProblemRoute, describe, problem_of

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["TOO_LARGE", "limited_route"]

#: Bytes of a form beside its files: names, fields, boundaries.
_BESIDE = 1 << 20

#: For how many seconds, and how many bytes, the rest of a body that is refused is read and forgotten.
_LINGERING, _LINGERING_BYTES = 5.0, 64 << 20

#: Where the count is kept in the scope of a request.
_COUNTED = "celeriac.counted"

#: OpenAPI's ``responses`` of a route that takes files.
TOO_LARGE = describe(_413="The files are larger than `celeriac_upload_limit` allows.")


def limited_route(celery: Celery) -> type[ProblemRoute]:
    """The class of the routes of this app's tasks that take files."""

    class LimitedRoute(ProblemRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            if "settings" not in vars(celery):  # reading the configuration imports modules
                await asyncio.to_thread(lambda: celery.settings)
            limit = celery.settings.upload_limit
            if limit is not None:
                receive = scope[_COUNTED] = _Counted(scope, receive, limit)
            await super().handle(scope, receive, send)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handle(request)
                except HTTPException as exc:
                    # FastAPI's answer to whatever reading a body raises.
                    answered = (
                        problem_of(exc.__cause__) if isinstance(exc.__cause__, UploadTooLarge) else None
                    )
                    if answered is None:
                        raise
                    await request.scope[_COUNTED].linger()
                    return answered

            return answer

    return LimitedRoute


class _Counted:
    """``receive`` that raises UploadTooLarge instead of more than a form with ``limit`` bytes of files can have."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self._announced = int(length) if length.isdigit() else 0
        # Who asks before sending is told no, and sends nothing.
        self._waits = b"expect" in headers
        self._receive = receive
        self._limit = limit
        self._read = 0

    async def __call__(self) -> Message:
        self._check(self._announced)
        message = await self._receive()
        self._read += len(message.get("body", b""))
        self._check(self._read)
        return message

    async def linger(self) -> None:
        """Let the client send on for a while: who is cut off in the middle may never read the answer."""
        if self._waits and self._read == 0:
            return
        most = self._read + _LINGERING_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGERING):
                while self._read < most:
                    message = await self._receive()
                    self._read += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _check(self, size: int) -> None:
        if size > self._limit + _BESIDE:
            raise UploadTooLarge(
                f"The upload has more than the {self._limit:,} bytes of celeriac_upload_limit."
            )
