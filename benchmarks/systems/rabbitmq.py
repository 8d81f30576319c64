"""Systems on RabbitMQ: a queue, purged for each measurement, whose length is asked for from outside."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from kombu import Connection

from benchmarks.processes import Command, run_probe
from benchmarks.systems.base import Place, System, WorkerOptions
from benchmarks.systems.embedded import embedded_worker
from benchmarks.systems.stock import stock_worker

__all__ = [
    "RABBITMQ",
    "RABBITMQ_RECORDS",
    "STOCK_RABBITMQ",
    "STOCK_RABBITMQ_THREADS",
    "RabbitMQPlace",
    "RabbitMQSystem",
]

#: Coroutines that fill the queue, where only the queue counts.
_REQUESTS = 64

_QUEUE = "celery"


class RabbitMQPlace(Place):
    """The queue of one server. What a worker has been handed counts as done: a few hundred at the end, at most."""

    def __init__(self, url: str, env: Mapping[str, str], app: str) -> None:
        self.env = env
        self._app = app
        self._connection = Connection(url)
        self._filled = 0

    def fill(self, task: str, count: int, argument: float) -> None:
        if task != "noop":
            raise ValueError(f"Only noop is known to every system, and {task} is not.")
        run_probe(
            "publish", {"app": self._app, "count": count, "requests": _REQUESTS, "warm_up": 0}, self.env
        )
        self._filled = self._ready()

    def begun(self) -> bool:
        return self._ready() < self._filled

    def drained(self) -> bool:
        return self._ready() == 0

    def enqueued(self) -> tuple[int, int]:
        return self._ready(), self._ready()

    def span(self, count: int) -> tuple[float, float] | None:
        return None

    def delete(self) -> None:
        """Have no queue."""
        self._connection.default_channel.queue_delete(_QUEUE)

    def _ready(self) -> int:
        return int(self._connection.default_channel.queue_declare(_QUEUE, passive=True).message_count)

    def close(self) -> None:
        """Stop looking."""
        self._connection.close()


class RabbitMQSystem(System):
    """A task queue on RabbitMQ, in a quorum queue."""

    python = sys.executable

    def __init__(
        self,
        name: str,
        app: str,
        worker: Callable[[WorkerOptions], Command],
        env: Mapping[str, str],
        settings: Sequence[WorkerOptions] = (WorkerOptions(),),
    ) -> None:
        self.name, self.app, self.settings = name, app, settings
        self._worker = worker
        self._env = env

    def unavailable(self) -> str | None:
        missing = shutil.which("rabbitmq-server") is None
        return "rabbitmq-server is not installed; `make services` installs it" if missing else None

    @contextmanager
    def at(self, url: str) -> Iterator[RabbitMQPlace]:
        """An empty place on the server at ``url``."""
        with closing(RabbitMQPlace(url, {"CELERY_BROKER_URL": url, **self._env}, self.app)) as place:
            place.delete()
            yield place

    @contextmanager
    def place(self) -> Iterator[RabbitMQPlace]:
        raise NotImplementedError("The scenarios start one server for all systems.")
        yield

    def worker(self, options: WorkerOptions) -> Command:
        return self._worker(options)


#: The best of each pool.
_POOLS = (
    WorkerOptions(pool="threads", concurrency=4, prefetch_multiplier=64),
    WorkerOptions(pool="solo", prefetch_multiplier=64),
    WorkerOptions(pool="prefork", concurrency=2, prefetch_multiplier=64),
)

_OURS = "benchmarks.apps.embedded"
RABBITMQ = RabbitMQSystem(
    "celeriac, without results", _OURS, embedded_worker, {"CELERY_RESULT_BACKEND": "disabled://"}
)
RABBITMQ_RECORDS = RabbitMQSystem("celeriac, records in SQLite", _OURS, embedded_worker, {})
STOCK_RABBITMQ = RabbitMQSystem("stock Celery", "benchmarks.apps.stock", stock_worker, {}, _POOLS)
STOCK_RABBITMQ_THREADS = RabbitMQSystem(
    "stock Celery, in threads", "benchmarks.apps.stock", stock_worker, {"BENCHMARK_THREADS": "1"}
)
