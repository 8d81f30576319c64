"""Stock Celery with its threads pool on Redis, results off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from benchmarks.processes import run_probe
from benchmarks.redis_server import redis_running, why_no_redis
from benchmarks.systems.base import Place, System, WorkerOptions

__all__ = ["STOCK_THREADS", "StockPlace"]


class StockPlace(Place):
    """One Redis server. It is looked at from outside, by kombu's keys."""

    def __init__(self, url: str) -> None:
        import redis

        self.env = {"CELERY_BROKER_URL": url}
        self._redis = redis.Redis.from_url(url)
        self._filled = 0

    def fill(self, task: str, count: int, argument: float) -> None:
        run_probe("delay", {"app": "benchmarks.apps.stock", "task": task, "count": count}, self.env)
        self._filled = self._waiting()

    def begun(self) -> bool:
        return self._waiting() < self._filled

    def drained(self) -> bool:
        # In this order: a message is in the hash before it has left the list for good, or a moment later.
        return self._waiting() == 0 and self._redis.hlen("unacked") == 0

    def span(self, count: int) -> tuple[float, float] | None:
        return None

    def _waiting(self) -> int:
        return int(self._redis.llen("celery"))

    def close(self) -> None:
        """Stop looking."""
        self._redis.close()


class _StockThreads(System):
    name = "stock Celery, threads, Redis"

    def unavailable(self) -> str | None:
        return why_no_redis()

    @contextmanager
    def place(self) -> Iterator[StockPlace]:
        with redis_running() as url, closing(StockPlace(url)) as place:
            yield place

    def worker(self, options: WorkerOptions) -> Sequence[str]:
        # Without everything that a worker can be spared: what is measured is its best.
        arguments = ["celery", "-A", "benchmarks.apps.stock:celery", "worker", "--loglevel=WARNING"]
        arguments += ["-P", "threads", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        if options.concurrency is not None:
            arguments += ["-c", str(options.concurrency)]
        if options.prefetch_multiplier is not None:
            arguments += ["--prefetch-multiplier", str(options.prefetch_multiplier)]
        return arguments


STOCK_THREADS = _StockThreads()
