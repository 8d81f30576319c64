from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from celeriac import errors
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
