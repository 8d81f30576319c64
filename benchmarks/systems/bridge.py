"""Systems on kombu's transports that need no server: SQLAlchemy over SQLite, and files."""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import Command, run_probe
from benchmarks.systems.base import Place, System, WorkerOptions
from benchmarks.systems.embedded import embedded_worker
from benchmarks.systems.stock import stock_worker
from celeriac.brokers.kombu_transports import source_class

__all__ = ["BRIDGED", "BridgePlace", "BridgeSystem"]

#: Coroutines that fill the queue, where only the queue counts.
_REQUESTS = 64

_QUEUE = "celery"


class BridgePlace(Place):
    """The queue in a folder. What a worker of ours has taken is in its keeper, which is looked into, too."""

    def __init__(self, folder: Path, transport: str, app: str, records: bool) -> None:
        self._app = app
        self._kept = folder / "celery.db" if records else None
        url, options = _transport(folder, transport)
        self.env = {
            "CELERY_BROKER_URL": url,
            "BENCHMARK_TRANSPORT_OPTIONS": json.dumps(options),
            **({"CELERY_RESULT_BACKEND": f"sqlite:///{self._kept}"} if records else {}),
        }
        self._source = source_class(url)(url, options=options)
        self._source.open()
        self._filled = 0

    def fill(self, task: str, count: int, argument: float) -> None:
        if task != "noop":
            raise ValueError(f"Only noop is known to every system, and {task} is not.")
        arguments = {"app": self._app, "count": count, "requests": _REQUESTS, "warm_up": 0}
        run_probe("publish", arguments, self.env)
        self._filled = self._source.size(_QUEUE)

    def begun(self) -> bool:
        return self._source.size(_QUEUE) < self._filled

    def drained(self) -> bool:
        return self._source.size(_QUEUE) == 0 and not self._is_kept()

    def _is_kept(self) -> bool:
        if self._kept is None:
            return False
        with closing(sqlite3.connect(self._kept)) as connection:
            return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM celeriac_message)").fetchone()[0])

    def enqueued(self) -> tuple[int, int]:
        return self._source.size(_QUEUE), self._source.size(_QUEUE)

    def span(self, count: int) -> tuple[float, float] | None:
        return None

    def close(self) -> None:
        """Stop looking."""
        self._source.close()


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
        self._transport, self._worker, self._env, self._records = transport, worker, dict(env or {}), records

    def unavailable(self) -> str | None:
        return None

    @contextmanager
    def place(self) -> Iterator[BridgePlace]:
        with tempfile.TemporaryDirectory() as folder:
            place = BridgePlace(Path(folder), self._transport, self.app, self._records)
            place.env = {**place.env, **self._env}
            with closing(place):
                yield place

    def worker(self, options: WorkerOptions) -> Command:
        return self._worker(options)


def _transport(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    if name == "filesystem":
        data = folder / "data"
        data.mkdir()
        return "filesystem://", {"data_folder_in": str(data), "data_folder_out": str(data)}
    return f"sqla+sqlite:///{folder / 'broker.db'}", {}


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
    for transport in ("sqla+sqlite", "filesystem")
}
