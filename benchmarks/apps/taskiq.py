"""taskiq, without results: on a list, whose messages are lost with their worker, or on a stream, where they are not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from benchmarks.apps.publishing import Publish

__all__ = ["broker", "noop", "publisher"]

_URL = os.environ["BENCHMARK_REDIS"]

_BROKER = RedisStreamBroker if os.environ.get("BENCHMARK_QUEUE") == "stream" else ListQueueBroker

broker = _BROKER(_URL).with_serializer(ORJSONSerializer())


@broker.task(task_name="noop")  # type: ignore[untyped-decorator]
async def noop(number: int) -> int:
    """As little as a task can do."""
    return number


@asynccontextmanager
async def publisher() -> AsyncIterator[Publish]:
    """Publish while this is open."""
    await broker.startup()
    try:
        yield noop.kiq
    finally:
        await broker.shutdown()
