"""Which broker and which result backend a Celery configuration names, in all the ways that Celery has for it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery
from celeriac.errors import ConfigurationError
from celeriac.worker.embedded import run_embedded


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.delenv(name, raising=False)


class Source:
    """A settings object, as ``config_from_object`` takes it."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings)


def loaded(**settings: Any) -> Celery:
    app = Celery("settings", set_as_current=False)
    app.config_from_object(Source(**settings))
    return app


@pytest.mark.parametrize("setting", ["broker_read_url", "broker_write_url"])
def test_a_url_for_reading_or_writing_alone_is_the_broker(setting: str) -> None:
    app = loaded(**{setting: "redis://127.0.0.1:1/3"})
    assert app.settings.broker_url == "redis://127.0.0.1:1/3"
    assert app.settings.result_backend == "redis://127.0.0.1:1/3"


def test_reading_from_one_broker_and_writing_to_another_is_refused() -> None:
    app = loaded(broker_read_url="redis://127.0.0.1:1/3", broker_write_url="redis://127.0.0.1:1/4")
    with pytest.raises(ConfigurationError, match="Set broker_url"):
        _ = app.settings


@pytest.mark.parametrize(
    "urls",
    ["redis://127.0.0.1:1/3;redis://127.0.0.1:2/3", ["redis://127.0.0.1:1/3", "redis://127.0.0.1:2/3"]],
)
def test_of_several_brokers_the_first_is_used_and_that_is_said(
    urls: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert loaded(broker_url=urls).settings.broker_url == "redis://127.0.0.1:1/3"
    assert "does not fail over" in caplog.text


def test_sentinels_are_one_broker() -> None:
    url = "sentinel://127.0.0.1:1;sentinel://127.0.0.1:2"
    assert loaded(broker_url=url).settings.broker_url == url


def test_settings_from_before_broker_url_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="broker_host"):
        _ = loaded(broker_host="rabbit.example").settings


def test_a_redis_backend_without_url_is_put_together() -> None:
    app = loaded(
        broker_url="redis://127.0.0.1:1/0",
        result_backend="redis",
        redis_host="cache",
        redis_port=7,
        redis_db=2,
        redis_password="p@ss",
    )
    assert app.settings.result_backend == "redis://:p%40ss@cache:7/2"


def test_rpc_has_its_records_beside_it() -> None:
    settings = loaded(broker_url="amqp://127.0.0.1:1", result_backend="rpc://").settings
    assert (settings.answers, settings.result_backend) == (True, "sqlite:///celery.db")
    settings = loaded(
        broker_url="amqp://127.0.0.1:1", result_backend="rpc", celeriac_records_url="redis://127.0.0.1:1"
    ).settings
    assert (settings.answers, settings.result_backend) == (True, "redis://127.0.0.1:1")


def test_a_place_for_records_is_not_asked_for_by_other_result_backends() -> None:
    app = loaded(
        broker_url="amqp://127.0.0.1:1", result_backend="memory://", celeriac_records_url="redis://h"
    )
    assert (app.settings.answers, app.settings.result_backend) == (False, "memory://")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "sqlite:///celery.db", "memory://"])
def test_rpc_is_for_rabbitmq(url: str) -> None:
    with pytest.raises(ConfigurationError, match="for RabbitMQ alone"):
        _ = loaded(broker_url=url, result_backend="rpc://").settings


async def test_files_need_nothing_but_their_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu writes to one folder and reads from another, unless it is told otherwise."""
    monkeypatch.chdir(tmp_path)
    app = loaded(broker_url="filesystem://")

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with asyncio.timeout(20), app:
        handle = await add.enqueue(1, 2)
        async with run_embedded(app, concurrency=2):
            assert await handle.result() == 3
