"""What a client, an API and its streams see of an outage, and how long each takes to recover."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import pytest

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, CeleriacError, PublishTimeout
from celeriac.handle import TaskHandle

__all__ = ["Api", "Clock", "Latency", "enqueue_again", "failed_enqueue", "measured_loop"]

T = TypeVar("T")


@dataclass
class Latency:
    """How late the loop was, in seconds: by what it computed, and by the clock, which other processes hold up, too."""

    computed: list[float] = field(default_factory=list)
    passed: list[float] = field(default_factory=list)


@asynccontextmanager
async def measured_loop() -> AsyncIterator[Latency]:
    """Measure for how long at a time nothing else can run on the loop."""
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
        """The names of a task's events, from one connection; ``started`` is set when it is said to run."""
        names: list[str] = []
        async with self.http.stream("GET", f"/tasks/{task_id}/events", timeout=60) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                if "STARTED" in line:
                    started.set()
        return names

    async def watch(self, task_id: str, seen: asyncio.Event | None = None) -> list[tuple[int, str, str]]:
        """A task's events, each with number, name and content, as a browser has them, which asks again where it was.

        ``seen`` is set at the tenth value.
        """
        found: list[tuple[int, str, str]] = []
        while not await self._watch_once(task_id, found, seen or asyncio.Event()):
            await asyncio.sleep(0.05)
        return found

    async def _watch_once(self, task_id: str, found: list[tuple[int, str, str]], seen: asyncio.Event) -> bool:
        """Whether the stream came to its end."""
        headers = {"Last-Event-ID": str(found[-1][0])} if found else {}
        event: dict[str, str] = {}
        with contextlib.suppress(httpx.TransportError):
            async with self.http.stream("GET", f"/tasks/{task_id}/events", headers=headers) as answer:
                async for line in answer.aiter_lines():
                    name, _, content = line.partition(": ")
                    if name:
                        event[name] = content
                        continue
                    if event.get("event") == "end":
                        return True
                    if "id" in event:
                        found.append((int(event["id"]), event["event"], event["data"]))
                        if event["event"] == "value" and int(event["data"]) >= 10:
                            seen.set()
                    event = {}
        return False

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
