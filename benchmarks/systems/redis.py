"""What the systems on Redis have in common: a server, emptied for each measurement, and looked at from outside."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from benchmarks.processes import run_probe
from benchmarks.redis_server import CLIENT_NAME, redis_running, why_no_redis
from benchmarks.systems.base import Place, System

if TYPE_CHECKING:
    import redis

__all__ = ["RedisPlace", "RedisSystem"]

#: Coroutines that fill a queue, where only the queue counts.
_REQUESTS = 64


class RedisPlace(Place):
    """One database of a Redis server. ``unfinished`` counts the tasks in it that have not come to their end."""

    def __init__(
        self, url: str, env: Mapping[str, str], system: System, unfinished: Callable[[redis.Redis], int]
    ) -> None:
        import redis

        self.url = url
        self.env = env
        self.server = redis.Redis.from_url(url, client_name=CLIENT_NAME)
        self._system = system
        self._unfinished = unfinished
        self._filled = 0

    def fill(self, task: str, count: int, argument: float) -> None:
        if task != "noop":
            raise ValueError(f"Only noop is known to every system, and {task} is not.")
        arguments = {"app": self._system.app, "count": count, "requests": _REQUESTS, "warm_up": 0}
        run_probe("publish", arguments, self.env, self._system.python)
        self.filled()

    def filled(self) -> None:
        """Take what is in the queue now for what is to be done."""
        self._filled = self._unfinished(self.server)

    def begun(self) -> bool:
        return self._unfinished(self.server) < self._filled

    def drained(self) -> bool:
        return self._unfinished(self.server) == 0

    def enqueued(self) -> tuple[int, int]:
        messages = self._unfinished(self.server)
        return messages, messages

    def span(self, count: int) -> tuple[float, float] | None:
        return None

    def close(self) -> None:
        """Stop looking."""
        self.server.close()


class RedisSystem(System):
    """A task queue on Redis."""

    python = sys.executable

    def unavailable(self) -> str | None:
        return why_no_redis()

    @contextmanager
    def place(self) -> Iterator[RedisPlace]:
        with redis_running() as url, self.at(url) as place:
            yield place

    @contextmanager
    def at(self, url: str) -> Iterator[RedisPlace]:
        """An empty place in the database at ``url``: whatever was in it is deleted."""
        with closing(self.open(url)) as place:
            place.server.flushdb()
            yield place

    def open(self, url: str) -> RedisPlace:
        """The place at ``url``."""
        return RedisPlace(url, self.environment(url), self, self.unfinished)

    @abstractmethod
    def environment(self, url: str) -> Mapping[str, str]:
        """What tells the system where its server is."""

    @abstractmethod
    def unfinished(self, server: redis.Redis) -> int:
        """How many tasks have not come to their end, as far as the system's keys tell."""
