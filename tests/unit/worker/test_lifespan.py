"""The FastAPI app's lifespan around a worker, without the worker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from celeriac import Celery
from celeriac.errors import ConfigurationError
from celeriac.worker.lifespan import app_running
from celeriac.worker.shutdown import Shutdown


def _celery(state: Any, ended: list[str]) -> Celery:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        try:
            yield state
        finally:
            ended.append("ended")

    celery = Celery("lifespan", broker="memory://", set_as_current=False)
    celery.fastapi_app = FastAPI(title="shop", lifespan=lifespan)
    _ = celery.settings  # reads the configuration, outside of the loop
    return celery


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture(params=[5, ["client"]])
def without_mapping(request: pytest.FixtureRequest, ended: list[str]) -> Celery:
    return _celery(request.param, ended)


@pytest.fixture
def with_mapping(ended: list[str]) -> Celery:
    return _celery({"client": 1}, ended)


async def test_a_state_that_is_no_mapping_fails_the_start(without_mapping: Celery, ended: list[str]) -> None:
    with pytest.raises(
        ConfigurationError, match="The lifespan of the FastAPI app 'shop' failed at its start"
    ):
        async with app_running(without_mapping, Shutdown("worker", 0)):
            pass
    assert ended == ["ended"]


async def test_the_state_is_a_mapping_of_its_own(with_mapping: Celery, ended: list[str]) -> None:
    async with app_running(with_mapping, Shutdown("worker", 0)):
        assert with_mapping.web_apps.current().state == {"client": 1}
        assert ended == []
    assert ended == ["ended"]
