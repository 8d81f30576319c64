"""dramatiq, without results and without middleware, but for the loop that ``async def`` actors need."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
import uvloop
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

from benchmarks.apps.publishing import Publish

__all__ = ["broker", "noop", "noop_in_thread", "publisher"]

uvloop.install()

broker = RedisBroker(url=os.environ["BENCHMARK_REDIS"], middleware=[AsyncIO()])
dramatiq.set_broker(broker)


@dramatiq.actor  # type: ignore[untyped-decorator]
async def noop(number: int) -> None:
    """As little as a task can do."""


@dramatiq.actor  # type: ignore[untyped-decorator]
def noop_in_thread(number: int) -> None:
    """The same without a hop to the loop."""


_CALLED = noop_in_thread if os.environ.get("BENCHMARK_FUNCTION") == "def" else noop


@asynccontextmanager
async def publisher() -> AsyncIterator[Publish]:
    """Publish while this is open. ``send`` blocks; a thread for each would cost more than it."""

    async def publish(number: int) -> object:
        return _CALLED.send(number)

    yield publish
