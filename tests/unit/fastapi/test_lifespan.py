from __future__ import annotations

import asyncio
import gc
import re
import signal
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from fastapi import FastAPI, Request

from celeriac import Celery
from celeriac.errors import ConfigurationError
from celeriac.fastapi import shutdown


@pytest.fixture
def closed(tmp_path: Path) -> Celery:
    return Celery("test", broker=f"memory://{tmp_path.name}", backend=f"memory://{tmp_path.name}")


async def test_celery_is_open_for_as_long_as_the_lifespan(closed: Celery) -> None:
    app = FastAPI()
    async with closed.lifespan(app):
        assert await closed.store.get(["nothing"]) == {}

    with pytest.raises(ConfigurationError):
        await closed.store.get(["nothing"])


async def test_the_collector_is_spared_what_was_there_before_the_first_request(closed: Celery) -> None:
    gc.unfreeze()
    async with closed.lifespan(FastAPI()):
        async with closed.lifespan(FastAPI()):
            assert gc.get_freeze_count() > 10_000
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0

    gc.freeze()  # by the program itself
    async with closed.lifespan(FastAPI()):
        pass
    assert gc.get_freeze_count() > 10_000
    gc.unfreeze()


async def test_what_python_has_frozen_is_nobodys_decision(
    closed: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.unfreeze()
    froze = Mock()
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 375)  # as Python 3.12 begins
    monkeypatch.setattr(gc, "freeze", froze)
    async with closed.lifespan(FastAPI()):
        froze.assert_called_once_with()


async def test_an_app_that_comes_and_goes_beside_another_leaves_nothing_behind(closed: Celery) -> None:
    class Node:
        itself: Any = None

    gc.unfreeze()
    async with closed.lifespan(FastAPI()):
        node = Node()
        node.itself = node
        gone = weakref.ref(node)
        del node
        async with closed.lifespan(FastAPI()):
            pass
        gc.collect()
        assert gone() is None


async def test_the_inner_lifespan_finds_celery_open_and_gives_its_state_to_requests(
    closed: Celery, serving: Any
) -> None:
    log: list[Any] = []

    @asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        log.append(await closed.store.get(["nothing"]))
        yield {"pool": "a pool"}
        log.append(await closed.store.get(["nothing"]))

    app = FastAPI(lifespan=closed.lifespan_with(inner))

    @app.get("/")
    async def read(request: Request) -> str:
        return str(request.state.pool)

    async with serving(app) as server, httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/")).json() == "a pool"

    assert log == [{}, {}]


async def test_an_inner_lifespan_that_fails_leaves_celery_closed(closed: Celery) -> None:
    @asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no pool")
        yield

    with pytest.raises(LookupError):
        async with closed.lifespan_with(inner)(FastAPI()):
            pass

    with pytest.raises(ConfigurationError):
        await closed.store.get(["nothing"])


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Takes the place of the default action of SIGTERM, which uvicorn sends again when it has stopped."""
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, previous)


async def test_a_server_with_open_streams_and_waits_stops_at_once(
    celery: Celery, feed: Any, watches: Any, serving: Any, stopped: list[int]
) -> None:
    app = FastAPI(lifespan=celery.lifespan)
    app.include_router(celery.router(), prefix="/tasks")
    await feed.started()
    async with asyncio.timeout(4):
        async with serving(app) as server, httpx.AsyncClient(base_url=server.url) as http:
            streaming = asyncio.create_task(http.get("/tasks/t1/events"))
            waiting = asyncio.create_task(http.get("/tasks/t1/result", params={"wait": 60}))
            await watches.count(2)

            signal.raise_signal(signal.SIGTERM)

            stream, result = await asyncio.gather(streaming, waiting)

    assert "event: state" in stream.text
    assert "event: end" not in stream.text
    assert result.status_code == 202
    assert watches.open == 0
    assert stopped == [signal.SIGTERM]


async def test_signal_handlers_are_put_back(stopped: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with shutdown.listen():
        assert signal.getsignal(signal.SIGTERM) is not before

        signal.raise_signal(signal.SIGTERM)

        over = shutdown.stopping()
        assert over is not None
        await over.wait()

    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped == [signal.SIGTERM]
    assert shutdown.stopping() is None


async def test_the_default_action_of_a_signal_is_left_to_the_system() -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with shutdown.listen():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def working(closed: Celery) -> tuple[FastAPI, list[str]]:
    """An app with a worker inside, and what happens in it. Made outside the loop, as an app's module is."""
    log: list[str] = []

    @closed.task(name="shop.count")
    async def count(to: int) -> AsyncIterator[int]:
        log.append("ran")
        for number in range(to):
            yield number

    @asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[None]:
        log.append("up")
        yield
        log.append("down")

    app = FastAPI(lifespan=closed.lifespan_with(inner, worker=True))
    app.include_router(closed.router(), prefix="/tasks")

    @app.post("/count")
    async def start() -> str:
        return (await count.enqueue(3)).id

    return app, log


async def test_a_worker_in_the_process_runs_what_the_app_enqueues(
    working: tuple[FastAPI, list[str]], serving: Any
) -> None:
    app, log = working
    async with asyncio.timeout(20):
        async with serving(app) as server:
            task_id = (await server.http.post(f"{server.url}/count")).json()
            events = await server.http.get(f"{server.url}/tasks/{task_id}/events")
            result = await server.http.get(f"{server.url}/tasks/{task_id}/result", params={"wait": 5})

    assert re.findall(r"event: value\ndata: (.*)", events.text) == ["0", "1", "2"]
    assert "event: end" in events.text
    assert result.status_code == 200
    assert log == ["up", "ran", "down"]
