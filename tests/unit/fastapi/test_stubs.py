"""Endpoints of tasks that come from routers, and of stubs, whose functions are in another program."""

from __future__ import annotations

from datetime import date
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from celeriac import Celery, TaskRouter
from celeriac.worker.embedded import run_embedded


class Report(BaseModel):
    month: date
    lines: int = 0


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4()}"


@pytest.fixture
def worker(url: str) -> Celery:
    app = Celery("worker", broker=url, backend=url, set_as_current=False)
    tasks = TaskRouter(prefix="reports.")

    @tasks.task
    async def build(month: date) -> Report:
        return Report(month=month, lines=2)

    app.include_router(tasks)
    return app


@pytest.fixture
def api(url: str) -> tuple[Celery, FastAPI]:
    celery = Celery("api", broker=url, backend=url, set_as_current=False)
    stubs = TaskRouter(prefix="reports.")

    @stubs.stub()
    async def build(month: date) -> Report:
        raise NotImplementedError

    @celery.stub(name="reports.build")
    async def same(month: date) -> Report:
        raise NotImplementedError

    celery.include_router(stubs)
    router = celery.router(insecure=True)
    router.expose(build, "/reports")
    router.expose(same, "/same")
    app = FastAPI()
    app.include_router(router, prefix="/tasks")
    return celery, app


@pytest.mark.parametrize("path", ["/tasks/reports", "/tasks/same"])
async def test_a_stub_is_exposed_like_its_task(
    api: tuple[Celery, FastAPI], worker: Celery, path: str
) -> None:
    celery, app = api
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with celery, worker, run_embedded(worker, concurrency=2), client:
        accepted = await client.post(path, json={"month": "2031-02-01"})
        assert accepted.status_code == 202
        found = await client.get(accepted.headers["location"], params={"wait": 5})
        assert found.json()["result"] == {"month": "2031-02-01", "lines": 2}
        assert (await client.post(path, json={"month": "never"})).status_code == 422
