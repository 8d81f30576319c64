"""Systems on kombu's transports: SQLAlchemy over SQLite, files, SQS and Kafka."""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.apps.counting import FIRST, LAST
from benchmarks.processes import Command, run_probe
from benchmarks.systems.base import Place, System, WorkerOptions
from benchmarks.systems.bridge_queues import MakeQueue, Queue
from benchmarks.systems.embedded import embedded_worker
from benchmarks.systems.stock import stock_worker

__all__ = ["BRIDGED", "BridgePlace", "BridgeSystem"]

#: Coroutines that fill the queue, where only the queue counts.
_REQUESTS = 64


class BridgePlace(Place):
    """A queue. What has left it may not have run yet, as workers fetch more than they run: the tasks say when they do.

    What a worker of ours has taken is in its keeper, which is looked into, too, where it has records.
    """

    def __init__(self, folder: Path, queue: Queue, app: str, records: bool) -> None:
        self._app = app
        self._folder = folder
        self._queue = queue
        self._kept = folder / "celery.db" if records else None
        self.env: dict[str, str] = {
            "CELERY_BROKER_URL": queue.url,
            "BENCHMARK_QUEUE": queue.name,
            "BENCHMARK_TRANSPORT_OPTIONS": json.dumps(queue.options),
            **({"CELERY_RESULT_BACKEND": f"sqlite:///{self._kept}"} if records else {}),
        }

    def fill(self, task: str, count: int, argument: float) -> None:
        if task != "noop":
            raise ValueError(f"Only noop is known to every system, and {task} is not.")
        arguments = {"app": self._app, "count": count, "requests": _REQUESTS, "warm_up": 0}
        run_probe("publish", arguments, self.env)
        self.env["BENCHMARK_COUNT"] = f"{count}:{self._folder}"

    def begun(self) -> bool:
        return (self._folder / FIRST).exists()

    def drained(self) -> bool:
        return (self._folder / LAST).exists() and self._queue.size() == 0 and not self._is_kept()

    def _is_kept(self) -> bool:
        if self._kept is None:
            return False
        with closing(sqlite3.connect(self._kept)) as connection:
            return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM celeriac_message)").fetchone()[0])

    def enqueued(self) -> tuple[int, int]:
        return self._queue.size(), self._queue.size()

    def span(self, count: int) -> tuple[float, float] | None:
        return None

    def close(self) -> None:
        """Stop looking."""
        self._queue.close()


class BridgeSystem(System):
    """A task queue on one of kombu's transports."""

    python = sys.executable

    def __init__(
        self,
        name: str,
        transport: str,
        app: str,
        worker: Callable[[WorkerOptions], Command],
        settings: Sequence[WorkerOptions] = (WorkerOptions(),),
        env: Mapping[str, str] | None = None,
        records: bool = False,
    ) -> None:
        self.name, self.app, self.settings = f"{name}, {transport}", app, settings
        self._worker, self._env, self._records = worker, dict(env or {}), records

    def unavailable(self) -> str | None:
        return None

    @contextmanager
    def at(self, make: MakeQueue) -> Iterator[BridgePlace]:
        """A queue of its own, of those that this makes."""
        with tempfile.TemporaryDirectory() as folder:
            place = BridgePlace(Path(folder), make(Path(folder)), self.app, self._records)
            place.env = {**place.env, **self._env}
            with closing(place):
                yield place

    @contextmanager
    def place(self) -> Iterator[BridgePlace]:
        raise NotImplementedError("The scenario starts one server for all systems.")
        yield

    def worker(self, options: WorkerOptions) -> Command:
        return self._worker(options)


_OURS = "benchmarks.apps.embedded"
_THREADS = (
    WorkerOptions(pool="threads", concurrency=4, prefetch_multiplier=64),
    WorkerOptions(pool="threads", concurrency=16, prefetch_multiplier=1),
)

#: By transport: ours without results, ours as it comes, and the threads pool of stock Celery.
BRIDGED = {
    transport: (
        BridgeSystem(
            "celeriac, without results",
            transport,
            _OURS,
            embedded_worker,
            env={"CELERY_RESULT_BACKEND": "disabled://"},
        ),
        BridgeSystem("celeriac, records in SQLite", transport, _OURS, embedded_worker, records=True),
        BridgeSystem("stock Celery, threads", transport, "benchmarks.apps.stock", stock_worker, _THREADS),
    )
    for transport in ("sqla+sqlite", "filesystem", "sqs", "confluentkafka")
}
