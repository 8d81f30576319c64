from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from celeriac import errors


@pytest.mark.parametrize("path", ["", "/t1", "/t1/result", "/t1/events"])
async def test_a_store_that_is_gone_asks_to_come_back(
    client: Any, celery: Any, feed: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await feed.enqueued()

    async def gone(*_args: Any, **_options: Any) -> Any:
        raise errors.StoreUnavailable("cannot connect to postgresql://me:secret@db/shop")

    monkeypatch.setattr(celery.store, "get", gone)
    monkeypatch.setattr(celery.store, "list", gone)

    answer = await client().get(f"/tasks{path}")

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["type"] == "urn:celeriac:problem:store-unavailable"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.TaskNotFound(task_id="t1"), 404),
        (errors.TaskRevoked(task_id="t1"), 409),
        (errors.InvalidArguments("no"), 422),
        (errors.KeyReused(), 409),
        (errors.TaskFailed("no", exc_type="ValueError", exc_message="no"), 424),
        (errors.BrokerUnavailable(), 503),
        (errors.StoreUnavailable(), 503),
        (errors.PublishTimeout(), 503),
        (errors.ResultTimeout(), 504),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_installed_handlers_answer_for_a_whole_app(
    client: Any, celery: Any, error: Exception, status: int
) -> None:
    app = FastAPI()
    celery.install(app)

    @app.get("/")
    async def fails() -> None:
        raise error

    answer = await client(app).get("/")

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_invalid_arguments_tell_what_is_wrong_and_not_what_was_passed(client: Any, celery: Any) -> None:
    app = FastAPI()
    celery.install(app)

    @app.post("/")
    async def enqueue() -> None:
        await celery.tasks["shop.add"].enqueue("my password", 2)

    answer = await client(app).post("/")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["type"] == "int_parsing"
    assert "password" not in answer.text


async def test_an_apps_own_handler_stays(client: Any, celery: Any) -> None:
    async def mine(request: Request, exc: Exception) -> PlainTextResponse:
        return PlainTextResponse("mine", 418)

    app = FastAPI(exception_handlers={errors.TaskNotFound: mine})
    celery.install(app)

    @app.get("/")
    async def fails() -> None:
        raise errors.TaskNotFound

    assert (await client(app).get("/")).status_code == 418
