"""Many coroutines of one process that wait for results."""

from __future__ import annotations

import asyncio
import time

import psutil

from benchmarks.apps.embedded import celery, noop
from benchmarks.processes import peak_memory
from benchmarks.redis_server import CLIENT_NAME

__all__ = ["probe"]

#: Seconds that everything may take.
_PATIENCE = 300.0

#: Seconds in which the process has used less than a tenth of its processor when everybody waits.
_CALM = 0.5


def probe(count: int, url: str, waiting: str) -> dict[str, float]:
    """Enqueue ``count`` tasks, wait for all of their results at once, and set the key ``waiting`` when all wait.

    Bytes of memory: before anything was enqueued, with everybody waiting, and at most; seconds from the first result to
    the last.
    """
    return asyncio.run(_measure(count, url, waiting))


async def _measure(count: int, url: str, waiting: str) -> dict[str, float]:
    ends: list[float] = []
    process = psutil.Process()
    async with celery:
        await noop.enqueue(0)
        before = process.memory_info().rss
        handles = await celery.enqueue_many([noop.s(number) for number in range(count)])

        async def wait(number: int) -> None:
            assert await handles[number].result(_PATIENCE) == number
            ends.append(time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(wait(number))
            await _calm()
            all_waiting = process.memory_info().rss
            await _tell(url, waiting)
    seconds = max(ends) - min(ends)
    return {"before": before, "waiting": all_waiting, "peak": peak_memory(process), "seconds": seconds}


async def _calm() -> None:
    while True:
        used = time.process_time()
        await asyncio.sleep(_CALM)
        if time.process_time() - used < _CALM / 10:
            return


async def _tell(url: str, key: str) -> None:
    from redis.asyncio import Redis

    async with Redis.from_url(url, client_name=CLIENT_NAME) as server:
        await server.set(key, 1)
