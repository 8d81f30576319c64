"""``RequestIdMiddleware``: an id for each request, in its answer and in the tasks that it enqueues."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import Response
from fastapi.testclient import TestClient

from celeriac import Celery
from celeriac.fastapi.request_id import RequestIdMiddleware
from celeriac.propagation import request_id
from celeriac.worker.embedded import run_embedded


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def here() -> Any:
        return request_id.get()

    @app.get("/thread")
    def thread() -> Any:
        return request_id.get()

    @app.get("/own")
    async def own() -> Response:
        return Response(headers={"X-Request-ID": "mine"})

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(request_id.get())
        await websocket.close()

    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_the_callers_id_is_taken_and_echoed(app: FastAPI) -> None:
    app.add_middleware(RequestIdMiddleware)
    async with client_of(app) as client:
        for path in ("/", "/thread"):
            for given in ("r-1", "x" * 128, "!~"):
                answer = await client.get(path, headers={"x-request-id": given})
                assert (answer.json(), answer.headers["x-request-id"]) == (given, given)
    assert request_id.get() is None


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\tb", b"\xe9", b"a\x00"])
async def test_another_is_made_for_what_is_none(app: FastAPI, given: Any) -> None:
    app.add_middleware(RequestIdMiddleware)
    async with client_of(app) as client:
        headers = {} if given is None else {"X-Request-ID": given}
        one, two = [await client.get("/", headers=headers) for _ in range(2)]
    assert str(UUID(one.json())) == one.headers["x-request-id"] == one.json() != two.json()


async def test_an_answer_that_has_one_keeps_it(app: FastAPI) -> None:
    app.add_middleware(RequestIdMiddleware)
    async with client_of(app) as client:
        assert (await client.get("/own")).headers.get_list("x-request-id") == ["mine"]


async def test_the_header_is_the_settings_and_two_are_as_good_as_one(app: FastAPI) -> None:
    celery = Celery("unit", broker=f"memory://{uuid4()}", set_as_current=False)
    app.add_middleware(RequestIdMiddleware, celery=celery)
    app.add_middleware(RequestIdMiddleware, header="X-Correlation-ID")
    await asyncio.to_thread(celery.conf.update, celeriac_request_id_header="X-Never")
    async with client_of(app) as client:
        answer = await client.get("/", headers={"x-correlation-id": "c-1", "x-never": "n"})
        assert (answer.json(), answer.headers["x-correlation-id"]) == ("c-1", "c-1")
        assert "x-never" not in answer.headers
    inner = FastAPI()
    inner.mount("/", app)
    inner.add_middleware(RequestIdMiddleware, celery=celery)
    async with client_of(inner) as client:
        answer = await client.get("/", headers={"x-never": "n"})
        assert (answer.json(), answer.headers["x-never"]) == ("n", "n")


def test_a_websocket_has_one(app: FastAPI) -> None:
    app.add_middleware(RequestIdMiddleware)
    with TestClient(app).websocket_connect("/socket", headers={"X-Request-ID": "w-1"}) as socket:
        assert socket.receive_json() == "w-1"
        assert (b"x-request-id", b"w-1") in list(socket.extra_headers or ())


async def test_a_task_carries_it(app: FastAPI) -> None:
    celery = Celery("unit", broker=f"memory://{uuid4()}", set_as_current=False)

    @celery.task
    async def look() -> str | None:
        await asyncio.sleep(0)
        return request_id.get()

    @app.post("/")
    async def enqueue() -> str | None:
        return await (await look.enqueue()).result(5)

    app.add_middleware(RequestIdMiddleware, celery=celery)
    async with celery, run_embedded(celery, concurrency=2), client_of(app) as client:
        assert (await client.post("/", headers={"X-Request-ID": "r-7"})).json() == "r-7"
