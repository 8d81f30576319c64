"""arq, without results, without two lines of log for each job, and looking for work all the time.

Otherwise it takes ``max_jobs`` jobs at most every half second.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from arq import create_pool, func
from arq.connections import RedisSettings

from benchmarks.apps.publishing import Publish

__all__ = ["LOGGING", "WorkerSettings", "publisher"]

_SETTINGS = RedisSettings.from_dsn(os.environ["BENCHMARK_REDIS"])

#: What the worker says.
LOGGING = {"version": 1, "loggers": {"arq": {"level": "WARNING"}}}

uvloop.install()


async def noop(context: dict[str, Any], number: int) -> int:
    """As little as a task can do."""
    return number


class WorkerSettings:
    """What the worker is started with."""

    functions = (func(noop, keep_result=0),)
    redis_settings = _SETTINGS
    max_jobs = int(os.environ.get("BENCHMARK_CONCURRENCY", "1000"))
    poll_delay = 0.001


@asynccontextmanager
async def publisher() -> AsyncIterator[Publish]:
    """Publish while this is open."""
    pool = await create_pool(_SETTINGS)

    async def publish(number: int) -> object:
        return await pool.enqueue_job("noop", number)

    try:
        yield publish
    finally:
        await pool.aclose()
