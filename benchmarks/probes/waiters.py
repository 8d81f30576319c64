"""Many coroutines of one process that wait for results."""

from __future__ import annotations

import asyncio
import time

import psutil

from benchmarks.apps.embedded import celery, noop
from benchmarks.probes.loop import run
from benchmarks.processes import peak_memory
from benchmarks.redis_server import CLIENT_NAME
from celeriac import TaskHandle

__all__ = ["probe"]

#: Seconds that everything may take.
_PATIENCE = 300.0

#: How many are enqueued at once.
_AT_ONCE = 100

#: Seconds in which the process has used less than a tenth of its processor when everybody waits.
_CALM = 0.5


def probe(count: int, url: str, waiting: str) -> dict[str, float]:
    """Enqueue ``count`` tasks, wait for all of their results at once, and set the key ``waiting`` when all wait.

    Bytes of memory: before anything was enqueued, with everybody waiting, and at most; seconds from the first result to
    the last.
    """
    return run(_measure(count, url, waiting))


async def _measure(count: int, url: str, waiting: str) -> dict[str, float]:
    ends: list[float] = []
    process = psutil.Process()
    async with celery:
        await noop.enqueue(0)
        before = process.memory_info().rss

        async def wait(handle: TaskHandle[int]) -> None:
            await handle.result(_PATIENCE)
            ends.append(time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for start in range(0, count, _AT_ONCE):
                # As requests come: some at once, and not all in one tick.
                signatures = [noop.s(number) for number in range(start, min(start + _AT_ONCE, count))]
                for handle in await celery.enqueue_many(signatures):
                    group.create_task(wait(handle))
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
