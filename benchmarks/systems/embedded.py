"""celeriac on SQLite, with records and results: its default."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.processes import Command, Failed, run_probe
from benchmarks.systems.base import Place, System, WorkerOptions

__all__ = ["EMBEDDED", "EmbeddedPlace", "embedded_worker"]


class EmbeddedPlace(Place):
    """One SQLite file. It is looked at from outside, with SQL alone."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "celery.db"
        self.env = {"CELERY_BROKER_URL": f"sqlite:///{self.file}"}
        self._observer: sqlite3.Connection | None = None

    def fill(self, task: str, count: int, argument: float) -> None:
        run_probe("fill", {"task": task, "count": count, "argument": argument}, self.env)

    def begun(self) -> bool:
        return bool(self._look("SELECT started_at IS NOT NULL FROM celery_taskmeta ORDER BY id LIMIT 1"))

    def drained(self) -> bool:
        return not self._look("SELECT EXISTS (SELECT 1 FROM celeriac_message)")

    def enqueued(self) -> tuple[int, int]:
        with closing(sqlite3.connect(self.file)) as connection:
            return connection.execute(
                "SELECT (SELECT count(*) FROM celeriac_message), (SELECT count(*) FROM celery_taskmeta)"
            ).fetchone()  # type: ignore[no-any-return]

    def span(self, count: int) -> tuple[float, float] | None:
        with closing(sqlite3.connect(self.file)) as connection:
            succeeded, first, last = connection.execute(
                "SELECT count(*), min(started_at), max(finished_at) FROM celery_taskmeta WHERE status = 'SUCCESS'"
            ).fetchone()
        if succeeded != count:
            raise Failed(f"{succeeded} records say SUCCESS, and not {count}.")
        return first, last

    def size(self) -> int:
        """Bytes of the database, its log included."""
        files = (self.file, self.file.with_name(self.file.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def _look(self, query: str) -> object:
        if self._observer is None:
            self._observer = sqlite3.connect(self.file, isolation_level=None)
        row = self._observer.execute(query).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Stop looking."""
        if self._observer is not None:
            self._observer.close()


def embedded_worker(options: WorkerOptions) -> Command:
    """A worker of ours, on whatever broker and store the environment names."""
    arguments = ["celery", "-A", "benchmarks.apps.embedded:celery", "worker", "--loglevel=WARNING"]
    if options.concurrency is not None:
        arguments += ["-c", str(options.concurrency)]
    if options.prefetch_multiplier is not None:
        arguments += ["--prefetch-multiplier", str(options.prefetch_multiplier)]
    return Command(tuple(arguments))


class _Embedded(System):
    name = "celeriac, SQLite"
    app = "benchmarks.apps.embedded"
    python = sys.executable

    def unavailable(self) -> str | None:
        return None

    @contextmanager
    def place(self) -> Iterator[EmbeddedPlace]:
        with tempfile.TemporaryDirectory() as folder, closing(EmbeddedPlace(Path(folder))) as place:
            yield place

    def worker(self, options: WorkerOptions) -> Command:
        return embedded_worker(options)


EMBEDDED = _Embedded()
