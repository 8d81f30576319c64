"""What a client, an API and its streams see of an outage, and how long each takes to recover."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, CeleriacError, PublishTimeout
from celeriac.handle import TaskHandle

__all__ = ["Api", "Clock", "Latency", "enqueue_again", "failed_enqueue", "measured_loop"]

T = TypeVar("T")

#: The streams of a task's events, by the last part of their paths: Server-Sent Events, and a WebSocket.
Way = Literal["events", "ws"]
WAYS: tuple[Way, ...] = ("events", "ws")


@dataclass
class Latency:
    """How late the loop was, in seconds: by what it computed, and by the clock, which other processes hold up, too."""

    computed: list[float] = field(default_factory=list)
    passed: list[float] = field(default_factory=list)


@asynccontextmanager
async def measured_loop() -> AsyncIterator[Latency]:
    """Measure for how long at a time nothing else can run on the loop.

    Without what the garbage collector would spend on all that the tests before have left, which no API has.
    """
    gc.collect()
    gc.freeze()
    latency = Latency()
    over = asyncio.Event()

    async def tick() -> None:
        while not over.is_set():  # once at least, and to the end of what was measured
            computed, passed = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0.002)
            latency.computed.append(time.thread_time() - computed)
            latency.passed.append(time.perf_counter() - passed - 0.002)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)  # so that it has begun
    try:
        yield latency
    finally:
        over.set()
        await ticking
        gc.unfreeze()


async def failed_enqueue(client: Celery) -> tuple[BaseException, float]:
    """The error that an enqueue raises, and after how many seconds."""
    before = time.perf_counter()
    with pytest.raises(CeleriacError) as caught:
        await client.enqueue("ledger.work")
    return caught.value, time.perf_counter() - before


async def enqueue_again(client: Celery) -> TaskHandle[object]:
    """Enqueue, as often as it takes."""
    while True:
        try:
            return await client.enqueue("ledger.work")
        except (BrokerUnavailable, PublishTimeout):
            await asyncio.sleep(0.02)


class Told(NamedTuple):
    """An event of a task, as a client has it; what only tells how things stand has no number."""

    number: int | None
    name: str
    data: Any


async def _parsed(answer: httpx.Response) -> AsyncIterator[Told]:
    event: dict[str, str] = {}
    async for line in answer.aiter_lines():
        name, _, content = line.partition(": ")
        if name:
            event[name] = content
            continue
        if "event" in event:
            number = int(event["id"]) if "id" in event else None
            yield Told(number, event["event"], json.loads(event["data"]))
        event = {}


async def _agreed(
    streams: Sequence[Awaitable[list[Told]]], reached: Sequence[asyncio.Event], all_reached: asyncio.Event
) -> list[Told]:
    """What all of these streams tell, in one order; the last event is set when each of the others is."""

    async def reach() -> None:
        for each in reached:
            await each.wait()
        all_reached.set()

    reaching = asyncio.create_task(reach())
    try:
        first, *others = await asyncio.gather(*streams)
    finally:
        reaching.cancel()
    numbered = [[each for each in stream if each.number is not None] for stream in (first, *others)]
    numbers = [each.number or 0 for each in numbered[0]]
    assert numbers == sorted(set(numbers)), numbers
    assert all(each == numbered[0] for each in numbered), numbered
    assert all(each[-1] == first[-1] for each in others), others
    return first


async def _received(connection: ClientConnection) -> AsyncIterator[Told]:
    async for message in connection:
        event = json.loads(message)
        if event["event"] != "heartbeat":  # the other streams have comments for it
            yield Told(int(event["id"]) if event["id"] else None, event["event"], event["data"])


class Api:
    """The API of a ledger, and what its routes say while Redis is away."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=30)

    async def answers(self, task_id: str) -> dict[str, tuple[int, float]]:
        """Status and seconds of each route, all asked at once. A 503 has to say when to ask again."""
        routes = {
            "enqueue": ("POST", "/work"),
            "list": ("GET", "/tasks"),
            "record": ("GET", f"/tasks/{task_id}"),
            "result": ("GET", f"/tasks/{task_id}/result"),
            "events": ("GET", f"/tasks/{task_id}/events"),
            "cancel": ("POST", f"/tasks/{task_id}/cancel"),
        }
        answers = await asyncio.gather(*(self._answer(*route) for route in routes.values()))
        return dict(zip(routes, answers, strict=True))

    async def _answer(self, method: str, path: str) -> tuple[int, float]:
        before = time.perf_counter()
        async with self.http.stream(method, path) as answer:
            seconds = time.perf_counter() - before
            if answer.status_code == 503:
                assert int(answer.headers["Retry-After"]) > 0
                assert "detail" in json.loads(await answer.aread())
            return answer.status_code, seconds

    async def ping(self, latencies: list[float]) -> None:
        """Ask again and again for what needs no Redis."""
        while True:
            before = time.perf_counter()
            assert (await self.http.get("/ping")).status_code == 200
            latencies.append(time.perf_counter() - before)
            await asyncio.sleep(0.02)

    async def follow(self, task_id: str, started: asyncio.Event) -> list[str]:
        """The names of a task's events, each kind of stream having told the same over one connection.

        ``started`` is set when the task is said to run.
        """
        running = [asyncio.Event() for _ in WAYS]
        streams = [self._follow(task_id, way, each) for way, each in zip(WAYS, running, strict=True)]
        return [each.name for each in await _agreed(streams, running, started)]

    async def _follow(self, task_id: str, way: Way, started: asyncio.Event) -> list[Told]:
        found: list[Told] = []
        async with self._stream(task_id, way) as told:
            async for each in told:
                found.append(each)
                if "STARTED" in str(each.data):
                    started.set()
        return found

    async def watch(self, task_id: str, seen: asyncio.Event | None = None) -> list[Told]:
        """A task's events as a browser has them at each kind of stream, which asks again where it was.

        ``seen`` is set at the tenth value.
        """
        reached = [asyncio.Event() for _ in WAYS]
        streams = [self._watch(task_id, way, each) for way, each in zip(WAYS, reached, strict=True)]
        return await _agreed(streams, reached, seen or asyncio.Event())

    async def _watch(self, task_id: str, way: Way, seen: asyncio.Event) -> list[Told]:
        found: list[Told] = []
        while not await self._watch_once(task_id, way, found, seen):
            await asyncio.sleep(0.05)
        return found

    async def _watch_once(self, task_id: str, way: Way, found: list[Told], seen: asyncio.Event) -> bool:
        """Whether the stream came to its end."""
        last = found[-1].number if found else None
        with contextlib.suppress(httpx.TransportError, WebSocketException, OSError):
            async with self._stream(task_id, way, last) as told:
                async for each in told:
                    if each.name == "end":
                        return True
                    if each.number is not None:
                        found.append(each)
                        if each.name == "value" and each.data >= 10:
                            seen.set()
        return False

    def _stream(
        self, task_id: str, way: Way, after: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Told]]:
        path = f"/tasks/{task_id}/{way}"
        return (self._server_sent if way == "events" else self._by_socket)(path, after)

    @asynccontextmanager
    async def _server_sent(self, path: str, after: int | None) -> AsyncIterator[AsyncIterator[Told]]:
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        async with self.http.stream("GET", path, headers=headers, timeout=60) as answer:
            yield _parsed(answer)

    @asynccontextmanager
    async def _by_socket(self, path: str, after: int | None) -> AsyncIterator[AsyncIterator[Told]]:
        query = "" if after is None else f"?after={after}"
        url = str(self.http.base_url.copy_with(scheme="ws")).rstrip("/")
        # Without a limit: a full queue would keep the client from reading the answer to its close.
        async with connect(f"{url}{path}{query}", max_queue=None) as connection:
            yield _received(connection)

    async def enqueue_again(self) -> None:
        """Enqueue, as often as it takes."""
        while (answer := await self.http.post("/work")).status_code != 202:
            assert answer.status_code == 503
            await asyncio.sleep(0.02)


class Clock:
    """Seconds from the end of the outage to what is waited for."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    async def time(self, what: str, awaitable: Awaitable[T]) -> T:
        result = await awaitable
        self.seconds[what] = round(time.perf_counter() - self.began, 2)
        return result
