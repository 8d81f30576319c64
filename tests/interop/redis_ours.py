"""A celeriac app on Redis, with the tasks of the stock app; some of them are coroutines here."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from tests.interop import redis_tasks

from celeriac import Celery

__all__ = ["celery", "make_app"]


def make_app(settings: dict[str, Any]) -> Celery:
    """An app with these settings. A URL of the broker is enough."""
    app = Celery("ours", set_as_current=False)
    app.conf.update(settings)

    @app.task(name="add")
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y

    @app.task(name="total")
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="retry", bind=True, max_retries=3)
    async def retry(self: Any, times: int) -> int:
        if self.request.retries < times:
            raise self.retry(countdown=0.1)
        retries: int = self.request.retries
        return retries

    @app.task(name="count", bind=True)
    async def count(self: Any, numbers: int) -> int:
        for number in range(numbers):
            self.emit(number)
        self.progress(numbers, numbers, "counted")
        return numbers

    redis_tasks.define(app, without=("add", "total", "retry"))
    return app


if redis_tasks.SETTINGS in os.environ:
    celery = make_app(redis_tasks.settings())
