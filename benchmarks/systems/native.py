"""celeriac on Redis: with records and results, as it comes, and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.processes import Command, Failed, run_probe
from benchmarks.systems.base import WorkerOptions
from benchmarks.systems.embedded import embedded_worker
from benchmarks.systems.redis import RedisPlace, RedisSystem

if TYPE_CHECKING:
    import redis

__all__ = ["NATIVE", "NATIVE_BARE"]

#: Of a queue that nobody gave a priority, and its lists for others.
_LISTS = ("celery", *(f"celery\x06\x16{step}" for step in (3, 6, 9)))


class _NativePlace(RedisPlace):
    def fill(self, task: str, count: int, argument: float) -> None:
        run_probe("fill", {"task": task, "count": count, "argument": argument}, self.env)
        self.filled()


class _RecordsPlace(_NativePlace):
    """Where each task leaves its result behind."""

    def enqueued(self) -> tuple[int, int]:
        messages, _ = super().enqueued()
        return messages, sum(1 for _ in self.server.scan_iter("celeriac:task:*", count=10_000))

    def span(self, count: int) -> tuple[float, float] | None:
        results = sum(1 for _ in self.server.scan_iter("celery-task-meta-*", count=10_000))
        if results != count:
            raise Failed(f"There are {results} results, and not {count}.")
        return None


class _Native(RedisSystem):
    app = "benchmarks.apps.embedded"

    def __init__(self, name: str, records: bool) -> None:
        self.name = name
        self._records = records

    def environment(self, url: str) -> Mapping[str, str]:
        backend = {} if self._records else {"CELERY_RESULT_BACKEND": "disabled://"}
        return {"CELERY_BROKER_URL": url, **backend}

    def open(self, url: str) -> RedisPlace:
        place = _RecordsPlace if self._records else _NativePlace
        return place(url, self.environment(url), self, self.unfinished)

    def unfinished(self, server: redis.Redis) -> int:
        # In one transaction: a message is in a list or in the hash, and must not be missed on its way.
        pipeline = server.pipeline()
        for name in _LISTS:
            pipeline.llen(name)
        pipeline.hlen("unacked")
        return sum(pipeline.execute())

    def worker(self, options: WorkerOptions) -> Command:
        return embedded_worker(options)


NATIVE = _Native("celeriac, records and results", records=True)
NATIVE_BARE = _Native("celeriac, without results", records=False)
