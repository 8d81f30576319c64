"""streaq, without results and without a line of log for each task."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streaq import Worker

from benchmarks.apps.publishing import Publish

__all__ = ["publisher", "worker"]

worker: Worker[None] = Worker(
    os.environ["BENCHMARK_REDIS"],
    concurrency=int(os.environ.get("BENCHMARK_CONCURRENCY", "100")),
    anyio_kwargs={"use_uvloop": True},
)


@worker.task(silent=True, ttl=0)  # type: ignore[untyped-decorator]
async def noop(number: int) -> int:
    """As little as a task can do."""
    return number


@asynccontextmanager
async def publisher() -> AsyncIterator[Publish]:
    """Publish while this is open."""

    async def publish(number: int) -> object:
        return await noop.enqueue(number)

    async with worker:
        yield publish
