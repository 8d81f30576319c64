"""With clients of the API: httpx in the test's loop, and starlette's in a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient

from celeriac import Celery
from celeriac.errors import ConfigurationError
from celeriac.testing import in_memory


class Site:
    """An app whose task must run on the loop of its lifespan."""

    def __init__(self, celery: Celery) -> None:
        self.course: list[str] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()

        @asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            self.course.append("up")
            yield
            self.course.append("down")

        @celery.task(name="site.note")
        async def note(what: str) -> str:
            self.course.append(what)
            self.loops.add(asyncio.get_running_loop())
            return what

        self.note = note
        self.app = FastAPI(lifespan=celery.lifespan_with(lifespan))
        self.app.include_router(celery.router(), prefix="/tasks")

        @self.app.post("/notes/{what}")
        async def post(what: str, countdown: float = 0.0) -> str:
            self.loops.add(asyncio.get_running_loop())
            return (await note.using(countdown=countdown).enqueue(what)).id

        @self.app.post("/stock/{what}")
        def post_in_a_thread(what: str) -> str:
            return str(note.delay(what).id)


@pytest.fixture
def site(celery: Celery) -> Site:
    return Site(celery)


async def test_an_async_client_shares_the_loop_of_the_test_and_its_worker(celery: Celery, site: Site) -> None:
    transport = ASGITransport(app=site.app)
    async with (
        in_memory(celery, app=site.app) as tasks,
        AsyncClient(transport=transport, base_url="http://t") as client,
    ):
        task_id = (await client.post("/notes/one")).json()
        await client.post("/stock/two")
        await tasks.idle()
        assert site.course == ["one", "two"]
        assert (await client.get(f"/tasks/{task_id}/result")).json()["result"] == "one"
        assert site.loops == {asyncio.get_running_loop()}
        tasks.assert_enqueued(site.note, "two")


def test_the_worker_is_on_the_loop_of_the_synchronous_client(celery: Celery, site: Site) -> None:
    before = site.app.router.lifespan_context
    with in_memory(celery, app=site.app) as tasks, TestClient(site.app) as client:
        task_id = client.post("/notes/one").json()
        client.post("/stock/two")
        tasks.idle()
        assert client.get(f"/tasks/{task_id}/result", params={"wait": 5}).json()["result"] == "one"
        client.post("/notes/later", params={"countdown": 60})
        tasks.idle()
        tasks.clock.advance(minutes=1)
        assert len(site.loops) == 1
    assert site.course == ["up", "one", "two", "later", "down"]
    assert site.app.router.lifespan_context == before


def test_without_a_lifespan_tasks_run_when_the_test_waits(celery: Celery, site: Site) -> None:
    with in_memory(celery, app=site.app) as tasks:
        client = TestClient(site.app)
        client.post("/notes/one")
        assert site.course == []
        tasks.idle()
        assert site.course == ["one"]


@pytest.mark.parametrize("with_lifespan", [True, False])
def test_inline_and_held_with_the_synchronous_client(celery: Celery, site: Site, with_lifespan: bool) -> None:
    client = TestClient(site.app)
    with in_memory(celery, app=site.app, mode="inline"):
        if with_lifespan:
            client.__enter__()
        client.post("/notes/one")
        assert site.course[-1] == "one"
        if with_lifespan:
            client.__exit__()
    site.course.clear()
    with in_memory(celery, app=site.app, mode="held") as tasks, TestClient(site.app) as client:
        client.post("/notes/two")
        tasks.assert_enqueued("site.note", "two")
        tasks.idle()
        assert "two" not in site.course
        tasks.run_until_idle()
        assert site.course[-1] == "two"


async def test_the_synchronous_face_refuses_to_block_a_loop(celery: Celery) -> None:
    memory = in_memory(celery)
    tasks = await asyncio.to_thread(memory.__enter__)
    with pytest.raises(ConfigurationError, match="async with in_memory"):
        tasks.idle()
    await asyncio.to_thread(memory.__exit__)


def test_a_worker_and_what_it_raises_in_a_synchronous_test(celery: Celery) -> None:
    @celery.task
    async def fail(how: Any) -> None:
        raise LookupError(how)

    with in_memory(celery, raise_errors=True) as tasks:
        fail.delay("thus")
        with pytest.raises(LookupError, match="thus"):
            tasks.idle()


def test_an_app_that_brings_a_worker_has_the_tests_instead(celery: Celery) -> None:
    @celery.task(name="noted")
    async def noted() -> None: ...

    app = FastAPI(lifespan=celery.lifespan_with(worker=True))
    with in_memory(celery, app=app, mode="held") as tasks, TestClient(app):
        result = noted.delay()
        tasks.idle()
        assert result.state == "PENDING"
        tasks.run_until_idle()
        assert result.state == "SUCCESS"
