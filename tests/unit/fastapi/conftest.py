"""A real app on a real store, served in memory (``client``) or over a socket (``server``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from fastapi import FastAPI

from celeriac import Celery
from celeriac.stores.base import Store, Watch
from celeriac.stores.records import EventDraft, Transition


@pytest.fixture
async def celery(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Celery]:
    """An app that is open on the test's loop; in memory, unless the test is parametrized with "sqlite" or "redis"."""
    where = getattr(request, "param", "memory")
    url = f"memory://{tmp_path.name}" if where == "memory" else f"sqlite:///{tmp_path}/celery.db"
    if where == "redis":
        url = str(request.getfixturevalue("redis_url"))
        with redis.Redis.from_url(url) as server:
            server.flushdb()
    app = Celery("test", broker=url, backend=url)
    app.task(name="shop.add")(add)
    async with app:
        yield app


async def add(x: int, y: int) -> int:
    return x + y


@dataclass
class Feed:
    """Writes a task's life into the store, as publisher and worker do."""

    store: Store
    tasks: list[str] = field(default_factory=list)

    async def enqueued(self, task_id: str = "t1", **more: Any) -> str:
        given = {"name": "shop.add", "queue": "celery", "args": "[1, 2]", "kwargs": "{}"} | more
        await self.state(task_id, "PENDING", **given)
        return task_id

    async def started(self, task_id: str = "t1", **more: Any) -> str:
        await self.enqueued(task_id, **more)
        await self.state(task_id, "STARTED", worker="w1@host", retries=0)
        return task_id

    async def state(self, task_id: str, state: str, **more: Any) -> None:
        more.setdefault("at", time.time())
        await self.store.transition([Transition(task_id=task_id, state=state, **more)])

    async def succeeded(self, task_id: str = "t1", result: str = "3") -> str:
        await self.state(task_id, "SUCCESS", result=result)
        return task_id

    async def failed(self, task_id: str = "t1") -> str:
        error = '{"exc_type": "ValueError", "exc_message": ["bad row"], "exc_module": "builtins"}'
        await self.state(task_id, "FAILURE", result=error, traceback="Traceback: line 1")
        return task_id

    async def emitted(self, task_id: str, *values: str) -> None:
        now = time.time()
        await self.store.append_events([EventDraft(task_id, "value", value, now) for value in values])

    async def progressed(self, task_id: str, data: str) -> None:
        await self.store.append_events([EventDraft(task_id, "progress", data, time.time())])


@pytest.fixture
async def feed(celery: Celery) -> Feed:
    return Feed(celery.store)


MakeClient = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def client(celery: Celery) -> AsyncIterator[MakeClient]:
    """Makes a client of an app with the router; options are ``celery.router``'s."""
    clients: list[httpx.AsyncClient] = []

    def make(app: FastAPI | None = None, **options: Any) -> httpx.AsyncClient:
        if app is None:
            app = FastAPI()
            app.include_router(celery.router(**options), prefix="/tasks")
        clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"))
        return clients[-1]

    yield make
    for made in clients:
        await made.aclose()


class Server(uvicorn.Server):
    """uvicorn on this loop, on a free port, that says when it is up."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
        self.up = asyncio.Event()
        self.http = httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=None))

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])


@asynccontextmanager
async def serve(app: FastAPI) -> AsyncIterator[Server]:
    server = Server(app)
    serving = asyncio.create_task(server.serve())
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        up.cancel()
        serving.result()
    try:
        yield server
    finally:
        await server.http.aclose()
        server.should_exit = True
        await serving


@pytest.fixture
async def server(celery: Celery) -> AsyncIterator[Server]:
    app = FastAPI(lifespan=celery.lifespan)
    app.include_router(celery.router(heartbeat=0.2), prefix="/tasks")
    async with serve(app) as running:
        yield running


class Watches:
    """How many of a store's watches are open, and when the last of them goes."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = 0
        self.none = asyncio.Event()
        self.some = asyncio.Event()
        self._more = asyncio.Condition()
        self._watch = store.watch
        monkeypatch.setattr(store, "watch", self._counted)

    @asynccontextmanager
    async def _counted(self, task_id: str, **options: Any) -> AsyncIterator[Watch]:
        async with self._watch(task_id, **options) as watch:
            self.open += 1
            self.none.clear()
            self.some.set()
            async with self._more:
                self._more.notify_all()
            try:
                yield watch
            finally:
                self.open -= 1
                if not self.open:
                    self.none.set()

    async def count(self, number: int) -> None:
        """Wait until so many are open."""
        async with self._more:
            await self._more.wait_for(lambda: self.open >= number)


@pytest.fixture
async def watches(celery: Celery, monkeypatch: pytest.MonkeyPatch) -> Watches:
    return Watches(celery.store, monkeypatch)


@pytest.fixture
def serving() -> Callable[[FastAPI], Any]:
    """Serves an app with uvicorn for as long as a context lasts."""
    return serve
