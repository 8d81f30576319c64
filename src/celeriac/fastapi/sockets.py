"""A stream of events over a WebSocket: the same events under the same rules, as JSON messages."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect, params

from celeriac.dependants import needs_request
from celeriac.errors import CeleriacError
from celeriac.fastapi.access import Access
from celeriac.fastapi.clients import Client
from celeriac.fastapi.errors import problem, problem_of
from celeriac.fastapi.stream import EventStream, Told, open_stream

if TYPE_CHECKING:
    from celeriac.app import Celery

__all__ = ["add_socket"]

#: RFC 6455, section 7.4.1, and the IANA registry of close codes.
_FINISHED, _GOING_AWAY, _REFUSED, _TRY_LATER = 1000, 1001, 1008, 1013

#: Codes of our own are 4000 and the HTTP status that the same request would get.
_OWN = 4000

#: Characters, which are bytes here: RFC 6455, section 5.5, has 125 with the code.
_LONGEST_REASON = 120

_log = logging.getLogger(__name__)


def add_socket(
    router: APIRouter,
    celery: Celery,
    access: Access,
    *,
    heartbeat: float,
    slow_client: float,
    origins: Sequence[str],
) -> None:
    """``/{task_id}/ws``: what happens to one task, as it happens, for a WebSocket."""
    unfit = _unfit([*router.dependencies, access.caller])
    if unfit is not None:
        _add_closed(router, unfit)
        return

    @router.websocket("/{task_id}/ws")
    async def task_events(
        websocket: WebSocket,
        task_id: str,
        caller: str | None = access.caller,
        after: Annotated[str | None, Query()] = None,
    ) -> None:
        if not _same_origin(websocket, origins):
            await websocket.close(_REFUSED)
            return
        async with AsyncExitStack() as stack:
            try:
                record = await access.find(task_id, caller)
                stream = await stack.enter_async_context(
                    open_stream(celery.store, record, after or None, heartbeat)
                )
                del record  # with all its arguments, for as long as the stream lasts
                await stream.begin()
            except (CeleriacError, ValueError) as exc:
                code = _code(exc)
                # Accepted first: a page gets to see no more of a handshake that fails than that it did.
                await websocket.accept()
                await websocket.close(code, _reason(exc))
                return
            await websocket.accept()
            await _tell(websocket, stream, slow_client)


async def _tell(websocket: WebSocket, stream: EventStream, slow_client: float) -> None:
    client = Client(
        websocket.receive,
        _gone(websocket),
        stop=stream.stop,
        behind=stream.forget,
        patience=slow_client,
        name=stream.task_id,
    )
    async with client:
        with contextlib.suppress(WebSocketDisconnect):
            async for batch in stream:
                for told in batch:
                    text = _format(told)
                    await client.send(websocket.send_text(text), len(text))
                    if client.dropped:
                        return
            if not client.gone:
                await client.send(websocket.close(_FINISHED if stream.ended else _GOING_AWAY), 0)


def _format(told: Told) -> str:
    id_ = "null" if told.id is None else f'"{told.id}"'
    return f'{{"id":{id_},"event":"{told.event}","data":{told.data}}}'


async def _gone(websocket: WebSocket) -> None:
    # What a client says is not asked for, and not kept.
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


def _code(exc: Exception) -> int:
    if isinstance(exc, ValueError):
        return _OWN + 422
    response = problem_of(exc)
    if response is None:
        raise exc
    return _TRY_LATER if response.status_code == 503 else _OWN + response.status_code


def _reason(exc: Exception) -> str:
    return "no event id of this task" if isinstance(exc, ValueError) else str(type(exc)())[:_LONGEST_REASON]


def _same_origin(websocket: WebSocket, origins: Sequence[str]) -> bool:
    """Whether the page that opens it may: a browser sends cookies along, and asks nobody, whoever's page it is."""
    origin = websocket.headers.get("origin")
    if origin is None or "*" in origins or origin in origins:
        return True
    with suppress(ValueError):  # no URL at all
        if urlsplit(origin).netloc == websocket.headers.get("host"):
            return True
    _log.warning(
        "refused a WebSocket to a page of %r, which is not %r: celery.router(websocket_origins=[…]) lets it in",
        origin,
        websocket.headers.get("host"),
    )
    return False


def _unfit(dependencies: Sequence[params.Depends]) -> str | None:
    """The name of a dependency that no WebSocket can have."""
    calls = [each.dependency for each in dependencies if each.dependency is not None]
    return next(filter(None, map(needs_request, calls)), None)


def _add_closed(router: APIRouter, unfit: str) -> None:
    # Not under the router's dependencies, of which one would fail.
    sentence = (
        f"The WebSocket of a task's events is closed: the dependency {unfit} takes a Request, and there is none. "
        "Let it take an HTTPConnection, or Header, Cookie and Query parameters."
    )

    async def closed(websocket: WebSocket) -> None:
        _log.error(sentence)
        await websocket.send_denial_response(problem(501, "websocket-closed", "Not possible", sentence))

    router.add_websocket_route("/{task_id}/ws", closed)
