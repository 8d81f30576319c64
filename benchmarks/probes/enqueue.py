"""Enqueue as an API under load does it: many requests at once, each waiting for the confirmation of its own task."""

from __future__ import annotations

import asyncio
import time

from benchmarks.apps.embedded import celery, noop

__all__ = ["probe"]

_WARM_UP = 200


def probe(count: int, requests: int) -> dict[str, float]:
    """``count`` calls by as many coroutines as ``requests``. Wall and processor seconds, of all threads."""
    return asyncio.run(_measure(count, requests))


async def _measure(count: int, requests: int) -> dict[str, float]:
    async with celery:
        await _enqueue(_WARM_UP, requests)
        started, cpu = time.perf_counter(), time.process_time()
        await _enqueue(count, requests)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


async def _enqueue(count: int, requests: int) -> None:
    numbers = iter(range(count))

    async def request() -> None:
        for number in numbers:
            await noop.enqueue(number)

    await asyncio.gather(*(request() for _ in range(requests)))
