"""Fill a queue, as fast as can be."""

from __future__ import annotations

from benchmarks.apps.embedded import celery
from benchmarks.probes.loop import run

__all__ = ["probe"]

_BATCH = 1000


def probe(task: str, count: int, argument: float) -> None:
    """Enqueue ``count`` calls ``task(argument)``."""
    run(_fill(task, count, argument))


async def _fill(task: str, count: int, argument: float) -> None:
    async with celery:
        signature = celery.tasks[task].s(argument)
        for start in range(0, count, _BATCH):
            await celery.enqueue_many([signature] * min(_BATCH, count - start))
