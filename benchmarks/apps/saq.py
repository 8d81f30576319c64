"""SAQ, without results, and with a JSON library that is faster than the standard one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvloop
from saq import Queue

from benchmarks.apps.publishing import Publish

__all__ = ["publisher", "settings"]

uvloop.install()

_QUEUE = Queue.from_url(os.environ["BENCHMARK_REDIS"], dump=orjson.dumps, load=orjson.loads)

#: Seconds for which a job is kept when it has ended: not at all.
_TTL = -1


async def noop(context: dict[str, Any], *, number: int) -> int:
    """As little as a task can do."""
    return number


settings = {
    "queue": _QUEUE,
    "functions": [noop],
    "concurrency": int(os.environ.get("BENCHMARK_CONCURRENCY", "32")),
}


@asynccontextmanager
async def publisher() -> AsyncIterator[Publish]:
    """Publish while this is open."""

    async def publish(number: int) -> object:
        return await _QUEUE.enqueue("noop", number=number, ttl=_TTL)

    await _QUEUE.connect()
    try:
        yield publish
    finally:
        await _QUEUE.disconnect()
