"""Stock Celery in processes of its own, on one SQLite file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.processes import Launcher, Process
from tests.interop import transport_app
from tests.interop.canvas_site import canvas_places, place
from tests.interop.redis_site import redis_site
from tests.interop.remote_site import remote_site

__all__ = ["Stock", "canvas_places", "place", "redis_site", "remote_site", "stock", "wait_until"]

_ROOT = Path(__file__).parents[2]


class Stock:
    """A folder with one queue and its results, and the programs that work on it."""

    def __init__(self, folder: Path, launcher: Launcher) -> None:
        self.folder = folder
        self.app = transport_app.make_app(folder)
        self._launcher = launcher

    def start(self, *arguments: str) -> Process:
        """Start ``celery -A … arguments``."""
        return self._launcher.start(
            [sys.executable, "-m", "celery", "-A", "tests.interop.transport_app", *arguments],
            cwd=_ROOT,
            env={transport_app.FOLDER: str(self.folder), "PYTHONPATH": str(_ROOT)},
        )

    def worker(self, *options: str) -> Process:
        """Start a worker, and wait until it consumes."""
        worker = self.start("worker", "--loglevel=info", *options)
        worker.wait_for_line(r" ready\.")
        return worker

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Publish a task as any Celery client does."""
        return self.app.send_task(task, args, **options)

    def notes(self) -> list[str]:
        """What tasks have written down."""
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def open_gate(self) -> None:
        """Let waiting tasks go on."""
        (self.folder / transport_app.GATE).touch()

    def close_gate(self) -> None:
        """Have tasks wait, and forget what they wrote."""
        (self.folder / transport_app.GATE).unlink(missing_ok=True)
        (self.folder / "notes").unlink(missing_ok=True)

    def waiting(self, queue: str = "celery") -> int:
        """How many messages could be delivered now."""
        with self.app.connection() as connection:
            count: int = connection.default_channel.queue_declare(queue, passive=True).message_count
            return count


def wait_until(condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Wait until a condition holds, and return what it returned."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """One file for all tests of a module."""
    launcher = Launcher()
    stock = Stock(tmp_path_factory.mktemp("stock"), launcher)
    try:
        yield stock
    finally:
        launcher.clean_up()
        stock.app.close()
