from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from celeriac import Celery, errors
from celeriac.errors import ConfigurationError


@pytest.mark.parametrize("first", [True, False], ids=["before-the-routes", "after-the-routes"])
async def test_it_may_be_called_twice_and_at_any_time(client: Any, celery: Any, first: bool) -> None:
    app = FastAPI()
    if first:
        celery.install(app)

    @app.post("/")
    async def fails() -> None:
        raise errors.BrokerUnavailable

    celery.install(app)
    celery.install(app)
    answer = await client(app).post("/", headers={"X-Request-ID": "r1"})

    assert answer.status_code == 503
    assert answer.headers.get_list("x-request-id") == ["r1"]
    assert len(app.user_middleware) == 1


async def test_delay_in_an_endpoint_without_a_broker_is_a_503_too(client: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/missing/celery.db"
    shop = Celery("shop", broker=url, set_as_current=False)
    shop.conf.task_publish_retry = False
    app = FastAPI()
    shop.install(app)

    @shop.task
    def greet(name: str) -> None: ...

    @app.post("/")
    def post() -> str:
        return str(greet.delay("Ann").id)

    answer = await client(app).post("/")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["type"] == "urn:celeriac:problem:broker-unavailable"
    assert answer.json()["detail"] == "The broker cannot be reached."  # and no path or host


async def test_an_app_that_serves_is_not_changed_any_more(client: Any, celery: Any) -> None:
    app = FastAPI()
    await client(app).get("/")

    with pytest.raises(ConfigurationError, match="before it starts"):
        celery.install(app)


async def test_calling_it_again_while_the_app_serves_is_harmless(client: Any, celery: Any) -> None:
    app = FastAPI()
    celery.install(app)
    await client(app).get("/")

    celery.install(app)


@pytest.mark.parametrize("kind", [errors.CeleriacError, errors.StoreError, errors.StoreUnavailable])
async def test_what_the_app_does_about_a_class_of_errors_stays(client: Any, celery: Any, kind: Any) -> None:
    app = FastAPI()

    @app.exception_handler(kind)
    async def mine(_request: Request, _exc: Exception) -> Response:
        return Response(status_code=418)

    @app.exception_handler(OSError)
    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _exc: Exception) -> Response:
        return Response(status_code=500)

    @app.get("/{name}")
    async def fails(name: str) -> None:
        raise getattr(errors, name)

    celery.install(app)
    celery.install(app)
    http = client(app)

    assert (await http.get("/StoreUnavailable")).status_code == 418
    assert (await http.get("/BrokerUnavailable")).status_code == (
        418 if kind is errors.CeleriacError else 503
    )
