"""Enqueue as an API under load does it: many requests at once, each waiting for the confirmation of its own task."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from typing import Any

from benchmarks.probes.loop import run

__all__ = ["probe"]


def probe(app: str, count: int, requests: int, warm_up: int = 200) -> dict[str, float]:
    """``count`` tasks of the application ``app``, by as many coroutines as ``requests``.

    Wall and processor seconds, of all threads. ``warm_up`` tasks more go first and are not counted.
    """
    return run(_measure(import_module(app), count, requests, warm_up))


async def _measure(app: Any, count: int, requests: int, warm_up: int) -> dict[str, float]:
    async with app.publisher() as publish:
        await _publish(publish, warm_up, requests)
        started, cpu = time.perf_counter(), time.process_time()
        await _publish(publish, count, requests)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


async def _publish(publish: Any, count: int, requests: int) -> None:
    numbers = iter(range(count))

    async def request() -> None:
        for number in numbers:
            await publish(number)

    await asyncio.gather(*(request() for _ in range(requests)))
