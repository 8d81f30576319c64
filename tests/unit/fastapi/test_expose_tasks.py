"""What kinds of tasks are exposed: with dependencies, stubs, generators; and that tests of an app can do it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from starlette.testclient import TestClient

from celeriac import Celery, TaskContext, TaskRouter
from celeriac.errors import ConfigurationError
from celeriac.testing import in_memory


class Report(BaseModel):
    rows: int


class Opaque:
    """What pydantic does not know."""


def mailer() -> str:
    return "mailer"


@pytest.fixture
def shop() -> Celery:
    return Celery("shop", broker="memory://shop-exposed", set_as_current=False)


def exposing(celery: Celery, *tasks: Any, **options: Any) -> FastAPI:
    router = celery.router(insecure=True)
    for task in tasks:
        router.expose(task, f"/{task.name.rpartition('.')[2].replace('_', '-')}", **options)
    app = FastAPI(lifespan=celery.lifespan)
    app.include_router(router, prefix="/tasks")
    return app


def fields(app: FastAPI, model: str) -> list[str]:
    return list(app.openapi()["components"]["schemas"][model]["properties"])


def test_two_tasks_do_not_share_a_path(shop: Celery) -> None:
    @shop.task(name="first")
    async def first() -> None: ...

    @shop.task(name="second")
    async def second() -> None: ...

    router = shop.router(insecure=True)
    router.expose(first, "/reports")
    with pytest.raises(
        ConfigurationError, match=r"second cannot be exposed under '/reports'.*the path of first"
    ):
        router.expose(second, "/reports/")


def test_dependencies_are_no_part_of_the_body(shop: Celery) -> None:
    @shop.task
    async def send(
        to: str,
        request: Request,
        mailer: Annotated[str, Depends(mailer)],
        *,
        context: TaskContext,
        copies: int = 1,
    ) -> Report:
        return Report(rows=copies)

    app = exposing(shop, send)

    assert fields(app, "SendArguments") == ["to", "copies"]
    with in_memory(shop, app=app), TestClient(app) as http:
        answer = http.post("/tasks/send", json={"to": "ann", "copies": 2})
        status = http.get(answer.headers["location"], params={"wait": 20})
    assert status.json()["result"] == {"rows": 2}


def test_a_stub_is_exposed_as_its_task_is(shop: Celery) -> None:
    @shop.stub(name="elsewhere.build_report")
    def build_report(customer: str, limit: int = 2) -> Report: ...  # type: ignore[empty-body]

    app = exposing(shop, build_report)

    assert fields(app, "BuildReportArguments") == ["customer", "limit"]
    assert "TaskStatus_Report_" in app.openapi()["components"]["schemas"]
    with TestClient(app) as http:
        answer = http.post("/tasks/build-report", json={"customer": "ann"})
        assert http.get(answer.headers["location"]).status_code == 202
        assert http.post("/tasks/build-report", json={}).status_code == 422


@pytest.mark.parametrize("mode", ["worker", "inline"])
def test_tests_of_an_app_may_use_keys(shop: Celery, mode: Any) -> None:
    @shop.task
    async def double(x: int) -> int:
        return 2 * x

    app, key = exposing(shop, double), {"Idempotency-Key": "key"}

    with in_memory(shop, app=app, mode=mode), TestClient(app) as http:
        answers = [http.post("/tasks/double", json={"x": 2}, headers=key) for _ in range(2)]
        status = http.get(answers[1].headers["location"], params={"wait": 20})
    assert answers[0].json()["task_id"] == answers[1].json()["task_id"]
    assert status.json()["result"] == 4


def test_every_type_of_result_has_a_place_in_the_document(shop: Celery) -> None:
    @shop.task
    async def words() -> AsyncIterator[str]:
        yield "word"

    @shop.task
    async def opaque() -> Opaque:
        return Opaque()

    @shop.task
    async def untyped():  # type: ignore[no-untyped-def]
        return 1

    @shop.task
    def lists() -> list[dict[str, Report]]:
        return []

    app = exposing(shop, words, opaque, untyped, lists)

    models = app.openapi()["components"]["schemas"]
    assert {"TaskStatus_NoneType_", "TaskStatus_Any_"} <= set(models)
    (listed,) = [models[name] for name in models if name.startswith("TaskStatus_list")]
    assert listed["properties"]["result"]["anyOf"][0]["type"] == "array"


def test_a_task_is_exposed_by_an_app_that_has_it(shop: Celery) -> None:
    routed = TaskRouter()

    @routed.task
    async def double(x: int) -> int:
        return 2 * x

    with pytest.raises(ConfigurationError, match="no app has included"):
        exposing(shop, double, name="double")

    first = Celery("first", broker="memory://first", set_as_current=False)
    first.include_router(routed)
    with pytest.raises(ConfigurationError, match="expose takes a task of this app"):
        exposing(shop, double)

    shop.include_router(routed)
    with TestClient(exposing(shop, double)) as http:
        answer = http.post("/tasks/double", json={"x": 1})
        assert http.get(answer.headers["location"]).status_code == 202  # in this app's own store
