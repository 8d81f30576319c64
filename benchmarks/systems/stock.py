"""Stock Celery on Redis, spared everything that costs time and is not asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.processes import Command
from benchmarks.systems.base import WorkerOptions
from benchmarks.systems.redis import RedisPlace, RedisSystem

if TYPE_CHECKING:
    import redis

__all__ = ["STOCK", "STOCK_RESULTS", "STOCK_THREADS", "stock_worker"]


class _ResultsPlace(RedisPlace):
    """Where each task that has ended leaves a key behind."""

    def drained(self) -> bool:
        # Acknowledged when they start: it is the results that tell of the end. Other keys are a handful.
        return super().drained() and self.server.dbsize() >= self._filled


class _Stock(RedisSystem):
    app = "benchmarks.apps.stock"

    def __init__(self, name: str, settings: tuple[WorkerOptions, ...], results: bool = False) -> None:
        self.name = name
        self.settings = settings
        self._results = results

    def environment(self, url: str) -> Mapping[str, str]:
        return {"CELERY_BROKER_URL": url, **({"CELERY_RESULT_BACKEND": url} if self._results else {})}

    def open(self, url: str) -> RedisPlace:
        place = _ResultsPlace if self._results else RedisPlace
        return place(url, self.environment(url), self, self.unfinished)

    def unfinished(self, server: redis.Redis) -> int:
        # In this order: a message is in the hash before it has left the list for good, or a moment later.
        return int(server.llen("celery")) + int(server.hlen("unacked"))

    def worker(self, options: WorkerOptions) -> Command:
        return stock_worker(options)


def stock_worker(options: WorkerOptions) -> Command:
    """A worker without everything that it can be spared: what is measured is its best."""
    arguments = ["celery", "-A", "benchmarks.apps.stock:celery", "worker", "--loglevel=WARNING"]
    arguments += ["-P", options.pool or "threads"]
    arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    if options.concurrency is not None:
        arguments += ["-c", str(options.concurrency)]
    if options.prefetch_multiplier is not None:
        arguments += ["--prefetch-multiplier", str(options.prefetch_multiplier)]
    return Command(tuple(arguments))


#: Settings of the threads pool. Without results none is much faster than the others, and which one is best differs
#: from machine to machine.
_THREADS = (
    WorkerOptions(concurrency=16, prefetch_multiplier=1),
    WorkerOptions(concurrency=1, prefetch_multiplier=1),
    WorkerOptions(concurrency=4, prefetch_multiplier=16),
    WorkerOptions(concurrency=100, prefetch_multiplier=4),
)

#: The best of each pool.
_POOLS = (
    WorkerOptions(pool="threads", concurrency=4, prefetch_multiplier=64),
    WorkerOptions(pool="prefork", concurrency=2, prefetch_multiplier=16),
    WorkerOptions(pool="solo"),
)

STOCK_THREADS = _Stock("stock Celery, threads, Redis", _THREADS)
STOCK = _Stock("stock Celery", _POOLS)
STOCK_RESULTS = _Stock("stock Celery, results in Redis", _POOLS, results=True)
