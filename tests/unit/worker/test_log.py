"""Celery's formats of what a worker logs about tasks may be replaced, as Celery's guide to extending it says."""

from __future__ import annotations

import io
import logging
from uuid import uuid4

import pytest
from celery.app import trace
from celery.app.log import TaskFormatter
from celery.exceptions import Ignore, Reject
from celery.utils.log import ColorFormatter

from celeriac import Celery
from celeriac.propagation import request_id
from celeriac.worker.embedded import run_embedded


async def test_replaced_formats_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    formats = {
        "LOG_RECEIVED": "here is %(name)s",
        "LOG_SUCCESS": "%(name)s made %(return_value)s",
        "LOG_FAILURE": "%(name)s broke: %(exc)s",
        "LOG_IGNORED": "%(name)s does not matter",
        "LOG_REJECTED": "%(name)s is cursed",
    }
    for name, words in formats.items():
        monkeypatch.setattr(trace, name, words)
    app = Celery("log", broker=f"memory://{uuid4()}", set_as_current=False)

    @app.task(name="good")
    async def good() -> int:
        return 5

    @app.task(name="bad")
    async def bad() -> None:
        raise ValueError("no")

    @app.task(name="ignored")
    async def ignored() -> None:
        raise Ignore

    @app.task(name="rejected")
    async def rejected() -> None:
        raise Reject("no")

    with caplog.at_level(logging.INFO, logger="celery"):
        async with app, run_embedded(app, concurrency=1):
            for task in (ignored, rejected, bad):
                await task.enqueue()
            # There is one slot: when this has ended, the others have.
            await (await good.enqueue()).result(5)
    said = {record.getMessage() for record in caplog.records}
    assert {"here is good", "good made 5", "ignored does not matter", "rejected is cursed"} <= said
    assert "bad broke: ValueError('no')" in said


async def test_replaced_formats_may_name_the_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("LOG_RECEIVED", "LOG_SUCCESS", "LOG_FAILURE"):
        monkeypatch.setattr(trace, name, f"{name} %(name)s for %(request_id)s")
    app = Celery("log", broker=f"memory://{uuid4()}", set_as_current=False)

    @app.task(name="good")
    async def good() -> None: ...

    @app.task(name="bad")
    async def bad() -> None:
        raise ValueError("no")

    with caplog.at_level(logging.INFO, logger="celery"):
        async with app, run_embedded(app, concurrency=1):
            token = request_id.set("r-1")
            await bad.enqueue()
            await (await good.enqueue()).result(5)
            request_id.reset(token)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("LOG_")]
    assert sorted(said) == [
        "LOG_FAILURE bad for r-1",
        "LOG_RECEIVED bad for r-1",
        "LOG_RECEIVED good for r-1",
        "LOG_SUCCESS good for r-1",
    ]


def test_formatters_name_the_request() -> None:
    app = Celery("log", broker=f"memory://{uuid4()}", set_as_current=False)
    stream = io.StringIO()
    for formatter in (ColorFormatter, TaskFormatter):
        logger = logging.Logger("anybody")
        app.log.setup_handlers(logger, stream, "%(request_id)s %(message)s", False, formatter=formatter)
        logger.warning("nobody's")
        token = request_id.set("r-2")
        logger.warning("somebody's")
        request_id.reset(token)
    assert stream.getvalue().splitlines() == ["- nobody's", "r-2 somebody's"] * 2
