"""Dependencies of tasks in tests: what the app overrides, and what its lifespan has set up, tasks have too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient

from celeriac import Celery
from celeriac.testing import in_memory


class Mailer:
    """Sends nothing."""

    def __init__(self, name: str) -> None:
        self.name = name


def get_mailer() -> Mailer:
    return Mailer("real")


def from_state(request: Request) -> str:
    return str(request.state.pool)


def make_app(celery: Celery) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"pool": "open"}

    app = FastAPI(lifespan=lifespan)

    @celery.task(name="send")
    async def send(to: str, mailer: Annotated[Mailer, Depends(get_mailer)]) -> str:
        return f"{mailer.name} to {to}"

    @celery.task(name="look")
    async def look(pool: Annotated[str, Depends(from_state)]) -> str:
        return pool

    @app.post("/send/{to}")
    async def post(to: str, mailer: Annotated[Mailer, Depends(get_mailer)]) -> dict[str, str]:
        handle = await send.enqueue(to)
        return {"endpoint": mailer.name, "task_id": handle.id}

    @app.post("/look")
    async def post_look() -> str:
        return (await look.enqueue()).id

    return app


@pytest.mark.parametrize("mode", ["worker", "inline"])
async def test_an_override_holds_for_endpoints_and_tasks(celery: Celery, mode: str) -> None:
    app = make_app(celery)
    app.dependency_overrides[get_mailer] = lambda: Mailer("fake")
    transport = ASGITransport(app=app)
    async with (
        in_memory(celery, app=app, mode=mode) as tasks,
        AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        answer = (await client.post("/send/ada")).json()
        await tasks.idle()
        assert answer["endpoint"] == "fake"
        assert await celery.handle(answer["task_id"]).result() == "fake to ada"
        tasks.assert_enqueued("send", "ada")
        app.dependency_overrides.clear()
        answer = (await client.post("/send/ada")).json()
        await tasks.idle()
        assert await celery.handle(answer["task_id"]).result() == "real to ada"
    assert celery.fastapi_app is None


def test_the_same_with_the_synchronous_client(celery: Celery) -> None:
    app = make_app(celery)
    app.dependency_overrides[get_mailer] = lambda: Mailer("fake")
    with in_memory(celery, app=app) as tasks, TestClient(app) as client:
        task_id = client.post("/send/ada").json()["task_id"]
        looked = client.post("/look").json()
        tasks.idle()
        assert celery.AsyncResult(task_id).get(timeout=5) == "fake to ada"
        assert celery.AsyncResult(looked).get(timeout=5) == "open"


async def test_an_async_test_may_have_the_lifespan(celery: Celery) -> None:
    app = make_app(celery)
    async with in_memory(celery, app=app, lifespan=True) as tasks:
        handle = await celery.enqueue("look")
        await tasks.idle()
        assert await handle.result() == "open"
    with pytest.raises(ValueError, match="needs the app"):
        in_memory(celery, lifespan=True)


async def test_two_apps_of_one_celery_take_turns(celery: Celery) -> None:
    first, second = make_app(celery), FastAPI()
    first.dependency_overrides[get_mailer] = lambda: Mailer("first")
    second.dependency_overrides[get_mailer] = lambda: Mailer("second")
    for app, name in ((first, "first"), (second, "second")):
        async with in_memory(celery, app=app, mode="inline"):
            assert await (await celery.enqueue("send", ["ada"])).result() == f"{name} to ada"
