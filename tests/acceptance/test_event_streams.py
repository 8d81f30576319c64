"""Events of tasks from two API processes at once, on SQLite and on Redis: none lost, none twice."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.acceptance.processes import Launcher, free_port, wait_until_up
from tests.services import RedisServer
from websockets.asyncio.client import connect

from celeriac import Celery
from celeriac.errors import StoreUnavailable
from celeriac.stores.base import Store
from celeriac.stores.records import EventDraft, Transition

APPS = Path(__file__).parent / "apps"

Event = tuple[str, Any, str | None]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer(append_only=True) as server:
        yield server


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of the broker and store that the test asks for."""
    if request.param == "redis":
        found: str = request.getfixturevalue("redis").url
        return found
    return f"sqlite:///{tmp_path}/celery.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with Celery("writer", broker=url, backend=url) as celery:
        yield celery.store


@pytest.fixture
def servers(url: str, launcher: Launcher) -> dict[str, int]:
    """Where two API processes listen, and their process ids."""
    ports = [free_port(), free_port()]
    processes = [
        launcher.start(
            ("uvicorn", "streams_api:app", "--port", str(port)), cwd=APPS, env={"CELERY_BROKER_URL": url}
        )
        for port in ports
    ]
    for port, process in zip(ports, processes, strict=True):
        wait_until_up(f"http://127.0.0.1:{port}/docs", process)
    return {f"127.0.0.1:{port}": process.pid for port, process in zip(ports, processes, strict=True)}


@pytest.fixture
def apis(servers: dict[str, int]) -> list[str]:
    return list(servers)


on_both = pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
on_redis = pytest.mark.parametrize("url", ["redis"], indirect=True)


@asynccontextmanager
async def sse(api: str, after: str | None = None, task_id: str = "t1") -> AsyncIterator[AsyncIterator[Event]]:
    headers = {"Last-Event-ID": after} if after else {}
    async with (
        httpx.AsyncClient(timeout=30) as http,
        http.stream("GET", f"http://{api}/tasks/{task_id}/events", headers=headers) as response,
    ):
        assert response.status_code == 200
        yield _parsed(response)


async def _parsed(response: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
            continue
        if "event" in fields:
            yield fields["event"], json.loads(fields["data"]), fields.get("id")
        fields = {}


@asynccontextmanager
async def ws(api: str, after: str | None = None, task_id: str = "t1") -> AsyncIterator[AsyncIterator[Event]]:
    url = f"ws://{api}/tasks/{task_id}/ws?after={after or ''}"
    # Without a limit: a full queue would keep the client from reading the answer to its close.
    async with connect(url, max_queue=None) as connection:

        async def told() -> AsyncIterator[Event]:
            async for message in connection:
                found = json.loads(message)
                if found["event"] != "heartbeat":
                    yield found["event"], found["data"], found["id"]

        yield told()


async def begin(store: Store, *task_ids: str) -> None:
    now = time.time()
    await store.transition([Transition(task_id=task_id, state="PENDING", at=now) for task_id in task_ids])


async def emit(store: Store, numbers: Sequence[int], *task_ids: str) -> None:
    now = time.time()
    await store.append_events([EventDraft(id_, "value", str(n), now) for n in numbers for id_ in task_ids])


async def finish(store: Store, *task_ids: str) -> None:
    now = time.time()
    await store.transition([Transition(task_id=task_id, state="SUCCESS", at=now) for task_id in task_ids])


async def everything(store: Store, task_id: str = "t1") -> list[Event]:
    events = await store.events(task_id)
    return [*((event.kind, event.data, event.id) for event in events), ("end", {"state": "SUCCESS"}, None)]


async def in_pieces(apis: Sequence[str], stream: Any, stride: int) -> list[Event]:
    """All of it, from connections that read ``stride`` events each, to one API after the other."""
    seen: list[Event] = []
    for turn in range(10_000):
        async with stream(apis[turn % len(apis)], seen[-1][2] if seen else None) as events:
            for _ in range(stride):
                seen.append(await anext(events))
                if seen[-1][0] == "end":
                    return seen
    raise AssertionError("there is no end")


@on_both
@pytest.mark.parametrize("stream", [sse, ws])
async def test_a_client_comes_back_at_every_position_while_events_are_appended(
    store: Store, apis: list[str], stream: Any
) -> None:
    await begin(store, "t1")
    async with asyncio.timeout(60):
        clients = [asyncio.create_task(in_pieces(apis, stream, stride)) for stride in (1, 1, 2, 3, 7)]
        for number in range(60):
            await emit(store, [number], "t1")
            await asyncio.sleep(0.01)  # the pace of the writer
        await finish(store, "t1")
        seen = await asyncio.gather(*clients)

    assert seen == [await everything(store)] * len(clients)


@on_both
async def test_a_stream_that_begins_when_its_task_ends_misses_nothing(store: Store, apis: list[str]) -> None:
    ids = [f"t{number}" for number in range(40)]
    await begin(store, *ids)
    await emit(store, range(5), *ids)
    positions = {id_: (await store.events(id_))[2].id for id_ in ids}

    async def rest(id_: str, number: int) -> list[Event]:
        async with sse(apis[number % 2], positions[id_], id_) as events:
            return [event async for event in events]

    async def end(id_: str, number: int) -> None:
        await asyncio.sleep(number * 0.002)  # somewhere in the opening of the stream
        await emit(store, [5], id_)
        await finish(store, id_)

    async with asyncio.timeout(60):
        for number, id_ in enumerate(ids):
            seen, _ = await asyncio.gather(rest(id_, number), end(id_, number % 20))
            assert seen == (await everything(store, id_))[3:]


@on_redis
async def test_two_hundred_streams_have_one_connection_in_each_process(
    store: Store, apis: list[str], redis: RedisServer
) -> None:
    ids = [f"t{number}" for number in range(100)]
    await begin(store, *ids)
    async with httpx.AsyncClient() as http:
        for api in apis:
            assert (await http.get(f"http://{api}/tasks/t0")).status_code == 200
    before = redis.connections()

    async with asyncio.timeout(100), AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(kind(api, None, id_))
            for kind in (sse, ws)
            for api in apis
            for id_ in ids
        ]
        for events in streams:
            assert (await anext(events))[0] == "state"
        during = redis.connections()
        await emit(store, [1], *ids)
        for events in streams:
            assert (await anext(events))[:2] == ("value", 1)

    # One for commands was there before; the one that listens has come.
    assert len(during) - len(before) == len(apis)
    assert len([each for each in during if each["sub"] != "0"]) == len(apis)


@on_both
@pytest.mark.parametrize("path", ["events", "ws"])
async def test_clients_that_never_read_are_cut_off_and_cost_no_memory(
    store: Store, servers: dict[str, int], path: str
) -> None:
    api, pid = next(iter(servers.items()))
    process = psutil.Process(pid)
    big = json.dumps("x" * 100_000)
    await begin(store, "t1")
    async with asyncio.timeout(90), AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(kind(api)) for kind in (sse, ws)]
        for events in readers:
            await anext(events)
        before = process.memory_info().rss
        for _ in range(30):
            await connect_lazily(stack, api, path)
        await until(lambda: connections(process) == 32)
        following = [asyncio.create_task(count(events)) for events in readers]
        for _ in range(40):
            await store.append_events([EventDraft("t1", "value", big, time.time())] * 10)

        # All of those, and not the two who read.
        await until(lambda: connections(process) == 2)
        assert process.memory_info().rss - before < 100_000_000
        await finish(store, "t1")
        assert await asyncio.gather(*following) == [402, 402]


@on_both
async def test_a_server_that_is_told_to_stop_waits_for_no_stream(
    url: str, store: Store, launcher: Launcher
) -> None:
    port = free_port()
    command = ("uvicorn", "streams_api:app", "--port", str(port))
    process = launcher.start(command, cwd=APPS, env={"CELERY_BROKER_URL": url})
    await asyncio.to_thread(wait_until_up, f"http://127.0.0.1:{port}/docs", process)
    api = f"127.0.0.1:{port}"
    await begin(store, "t1")
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(kind(api)) for kind in (sse, ws)]
        for path in ("events", "ws"):
            await connect_lazily(stack, api, path)
        following = [asyncio.create_task(count(events)) for events in readers]
        for _ in range(20):
            await store.append_events([EventDraft("t1", "value", f'"{"x" * 100_000}"', time.time())] * 10)

        process.terminate()

        # By the signal, which uvicorn raises again when all is done.
        assert await asyncio.to_thread(process.wait, 15) in (0, -signal.SIGTERM)
        await asyncio.gather(*following, return_exceptions=True)
        assert "Traceback" not in process.output


async def connect_lazily(stack: AsyncExitStack, api: str, path: str) -> None:
    """A client that asks, and never reads."""
    lazy = stack.enter_context(socket.socket())
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    lazy.setblocking(False)
    host, port = api.split(":")
    await asyncio.get_running_loop().sock_connect(lazy, (host, int(port)))
    await asyncio.get_running_loop().sock_sendall(lazy, handshake(path))


def handshake(path: str) -> bytes:
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    return f"GET /tasks/t1/{path} HTTP/1.1\r\nHost: a\r\n{upgrade if path == 'ws' else ''}\r\n".encode()


def connections(process: psutil.Process) -> int:
    """How many clients an API has."""
    port = next(each.laddr.port for each in process.net_connections("tcp") if each.status == "LISTEN")
    return sum(
        1
        for each in process.net_connections("tcp")
        if each.laddr.port == port and each.status not in ("LISTEN", "TIME_WAIT")
    )


async def until(condition: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(0.05)


async def count(events: AsyncIterator[Event]) -> int:
    return len([event[0] async for event in events])


@on_redis
async def test_streams_outlast_a_restart_of_redis(store: Store, apis: list[str], redis: RedisServer) -> None:
    await begin(store, "t1")
    await emit(store, range(10), "t1")
    reached = asyncio.Semaphore(0)

    async def follow(stream: Any, api: str) -> list[Event]:
        seen: list[Event] = []
        async with stream(api) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == 11:
                    reached.release()
        return seen

    async with asyncio.timeout(90):
        following = [asyncio.create_task(follow(kind, api)) for kind in (sse, ws) for api in apis * 5]
        for _ in following:
            await reached.acquire()
        await asyncio.to_thread(redis.stop)
        await asyncio.to_thread(redis.start)
        for write in (lambda: emit(store, range(10, 20), "t1"), lambda: finish(store, "t1")):
            await persistently(write)
        seen = await asyncio.gather(*following)

    assert [number for kind, number, _ in seen[0] if kind == "value"] == list(range(20))
    assert seen == [await everything(store)] * len(following)


async def persistently(write: Any) -> None:
    """What is refused, because the connection was lost before it was sent, is written again."""
    while True:
        try:
            return await write()
        except StoreUnavailable:
            await asyncio.sleep(0.05)
