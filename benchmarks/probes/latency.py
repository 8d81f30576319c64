"""How long one task takes on an idle system, as its caller sees it."""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks.apps.embedded import celery, noop
from benchmarks.probes.loop import run

__all__ = ["probe"]

_WARM_UP = 10

#: Seconds that the worker gets to answer its first task.
_PATIENCE = 60.0


def probe(samples: int, pause: float) -> dict[str, list[float]]:
    """``samples`` calls, one at a time, with pauses of ``pause`` seconds on average.

    Seconds from ``enqueue`` to the result, and from ``enqueue`` to the start in the worker.
    """
    return run(_measure(samples, pause))


async def _measure(samples: int, pause: float) -> dict[str, list[float]]:
    measured: dict[str, list[float]] = {"result": [], "start": []}
    async with celery:
        await (await noop.enqueue(0)).result(_PATIENCE)
        for number in range(_WARM_UP + samples):
            # Of random length: nothing that looks every so often may be in step with it.
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause)
            began, clock = time.perf_counter(), time.time()
            handle = await noop.enqueue(number)
            await handle.result(_PATIENCE)
            seconds = time.perf_counter() - began
            record = await handle.record()
            if number >= _WARM_UP and record.started_at is not None:
                measured["result"].append(seconds)
                measured["start"].append(record.started_at.timestamp() - clock)
    return measured
