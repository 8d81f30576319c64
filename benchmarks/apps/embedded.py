"""celeriac as it comes: records, results, validated arguments, and whatever ``CELERY_BROKER_URL`` names."""

from __future__ import annotations

import asyncio

from celeriac import Celery

__all__ = ["celery", "nap", "noop"]

celery = Celery("benchmark")


@celery.task(name="noop")
async def noop(number: int) -> int:
    """As little as a task can do."""
    return number


@celery.task(name="nap")
async def nap(seconds: float) -> None:
    """Wait, as most tasks do most of the time."""
    await asyncio.sleep(seconds)
