"""Clients that stop reading: raw sockets, and tasks that emit megabytes."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.middleware.base import BaseHTTPMiddleware

from celeriac.fastapi import shutdown
from celeriac.fastapi.clients import transport_of
from celeriac.stores.records import TaskEvent, TaskRecord

pytestmark = pytest.mark.parametrize("celery", ["memory", "sqlite"], indirect=True)

PATIENCE = 0.6  # seconds
BIG = json.dumps("x" * 100_000)


class Lazy:
    """A client that asks for the events, and reads only when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def read(self, size: int = 65_536) -> bytes:
        return await self._loop.sock_recv(self._sock, size)

    async def everything(self) -> bytes:
        """What is left, until the server has closed or reset the connection."""
        found = bytearray()
        try:
            while part := await self.read(1_000_000):
                found += part
        except ConnectionResetError:
            pass
        return bytes(found)


@asynccontextmanager
async def lazy(
    server: Any, *, websocket: bool = False, after: str = "", buffer: int = 16_384
) -> AsyncIterator[Lazy]:
    path = "/tasks/t1/ws" if websocket else "/tasks/t1/events"
    lines = [f"GET {path}?after={after} HTTP/1.1", "Host: test"]
    if websocket:
        key = base64.b64encode(os.urandom(16)).decode()
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += [f"Sec-WebSocket-Key: {key}"]
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(30):
            yield Lazy(sock)


def app_of(celery: Any, **options: Any) -> FastAPI:
    app = FastAPI(lifespan=celery.lifespan)
    app.include_router(celery.router(**{"slow_client": PATIENCE} | options), prefix="/tasks")
    return app


def connections(server: uvicorn.Server) -> int:
    gc.collect()
    return len(server.server_state.connections)


async def emit(feed: Any, count: int = 200) -> None:
    for _ in range(count // 20):
        await feed.emitted("t1", *[BIG] * 20)


async def gone(server: uvicorn.Server) -> None:
    async with asyncio.timeout(20):
        while server.server_state.connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("websocket", [False, True])
@pytest.mark.parametrize("finished", [False, True])
async def test_a_client_that_stops_reading_is_dropped_with_all_it_held(
    celery: Any, feed: Any, serving: Any, watches: Any, websocket: bool, finished: bool
) -> None:
    await feed.started()
    await emit(feed)
    if finished:
        await feed.succeeded()

    async with serving(app_of(celery)) as server:
        async with lazy(server, websocket=websocket) as client:
            await client.read(10)
            await watches.some.wait()

            await gone(server)
            await watches.none.wait()

            assert len(await client.everything()) < 10_000_000


async def test_what_is_left_in_the_servers_buffer_counts_although_nothing_more_is_sent(
    celery: Any, feed: Any, serving: Any, watches: Any
) -> None:
    await feed.started()

    async with serving(app_of(celery)) as server:
        async with lazy(server) as client:
            await client.read(10)
            await watches.some.wait()
            protocol = next(iter(server.server_state.connections))
            async with asyncio.timeout(20):
                # Below what makes the server wait with a write.
                while not protocol.transport.get_write_buffer_size():
                    await feed.emitted("t1", json.dumps("x" * 10_000))
                    await asyncio.sleep(0.002)
            assert protocol.transport.get_write_buffer_size() < 65_536

            await gone(server)


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_client_that_reads_slowly_stays(
    celery: Any, feed: Any, serving: Any, watches: Any, websocket: bool
) -> None:
    await feed.started()
    await emit(feed, 120)
    await feed.succeeded()

    async with serving(app_of(celery)) as server:
        async with lazy(server, websocket=websocket, buffer=262_144) as client:
            found = bytearray()
            started = asyncio.get_running_loop().time()
            # Longer than the patience, and some of it all the time.
            while asyncio.get_running_loop().time() < started + 4 * PATIENCE:
                found += await client.read(100_000)
                await asyncio.sleep(PATIENCE / 20)
            end = b'"event":"end"' if websocket else b"event: end"
            while end not in found[-200:]:
                found += await client.read(1_000_000)

    assert found.count(b"x" * 100_000) == 120


async def test_little_is_held_for_a_client_that_is_behind(
    celery: Any, feed: Any, serving: Any, watches: Any
) -> None:
    await feed.started()
    await emit(feed)

    async with serving(app_of(celery, slow_client=30.0)) as server:
        async with lazy(server) as client:
            await client.read(10)
            async with asyncio.timeout(20):
                while held():
                    await asyncio.sleep(0.05)
            assert watches.open == 1
        await gone(server)


def held() -> int:
    """How many large events are in memory, those in the memory store's own form aside."""
    gc.collect()
    return sum(
        issubclass(type(each), TaskEvent) and isinstance(each.data, str) and len(each.data) > 50_000
        for each in gc.get_objects()
    )


@pytest.mark.parametrize("websocket", [False, True])
async def test_an_open_stream_does_not_hold_the_record(
    celery: Any, feed: Any, serving: Any, watches: Any, websocket: bool
) -> None:
    await feed.enqueued()
    async with serving(app_of(celery)) as server:
        async with lazy(server, websocket=websocket) as client:
            while b"PENDING" not in await client.read():
                pass

            gc.collect()

            assert not [each for each in gc.get_objects() if issubclass(type(each), TaskRecord)]
        await gone(server)


async def test_the_others_do_not_notice(celery: Any, feed: Any, serving: Any, watches: Any) -> None:
    await feed.started()
    await emit(feed)

    async with serving(app_of(celery, slow_client=30.0)) as server:
        async with lazy(server), lazy(server, websocket=True), asyncio.timeout(20):
            await watches.count(2)
            async with server.http.stream("GET", f"{server.url}/tasks/t1/events") as response:
                count = 0
                async for line in response.aiter_lines():
                    count += line == "event: value"
                    if count == 200:
                        break
        await gone(server)


async def test_a_dropped_client_goes_on_where_it_was(
    celery: Any, feed: Any, serving: Any, watches: Any
) -> None:
    await feed.started()
    await emit(feed)
    await feed.succeeded()
    ids = [event.id for event in await feed.store.events("t1")]

    async with serving(app_of(celery)) as server:
        async with lazy(server) as client:
            await client.read(10)
            await gone(server)
            first = ids_of(await client.everything())
        async with lazy(server, after=first[-1]) as client:
            second = ids_of(await until_end(client))

    assert 2 < len(first) < 200
    assert first + second == ids


async def until_end(client: Lazy) -> bytes:
    found = bytearray()
    while b"event: end" not in found[-200:]:
        found += await client.read(1_000_000)
    return bytes(found)


def ids_of(told: bytes) -> list[str]:
    # An event that was cut off in the middle is none: its last line is empty.
    lines = told.rpartition(b"\n\n")[0].split(b"\n")
    return [line[4:].decode() for line in lines if line.startswith(b"id: ")]


async def test_a_server_that_stops_waits_for_nobody_who_does_not_read(
    celery: Any, feed: Any, serving: Any, watches: Any
) -> None:
    await feed.started()
    await emit(feed)

    async with serving(app_of(celery, slow_client=60.0)) as server:
        async with lazy(server) as client, lazy(server, websocket=True) as other:
            await client.read(10)
            await other.read(10)
            await watches.count(2)
            event = shutdown.stopping()
            assert event is not None

            event.set()

            async with asyncio.timeout(5):
                await watches.none.wait()


async def test_the_transport_is_found_behind_middlewares(
    celery: Any, feed: Any, serving: Any, watches: Any
) -> None:
    await feed.started()
    await emit(feed)
    app = app_of(celery)
    found: list[bool] = []

    class Middleware(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            return await call_next(request)

    @app.get("/transport")
    async def transport(request: Request) -> None:
        found.append(transport_of(request.receive) is not None)

    app.add_middleware(Middleware)
    app.add_middleware(Middleware)
    async with serving(app) as server:
        await server.http.get(f"{server.url}/transport")
        await server.http.aclose()
        async with lazy(server) as client:
            await client.read(10)
            await gone(server)

    assert found == [True]


async def test_without_a_transport_there_is_a_deadline(celery: Any, feed: Any, watches: Any) -> None:
    await feed.started()
    app = app_of(celery)
    started = asyncio.Event()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        started.set()
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    request = httpx.Request("GET", "http://test/tasks/t1/events")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": b"",
        "headers": [],
        "server": ("test", 80),
        "client": ("test", 1),
        "scheme": "http",
        "root_path": "",
    }
    async with asyncio.timeout(5):
        await app(scope, receive, send)

    assert started.is_set()
    assert not watches.open
