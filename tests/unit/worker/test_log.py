"""Celery's formats of what a worker logs about tasks may be replaced, as Celery's guide to extending it says."""

from __future__ import annotations

import logging
from uuid import uuid4

import pytest
from celery.app import trace
from celery.exceptions import Ignore, Reject

from celeriac import Celery
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
