"""A plain Celery app: of celeriac it knows the transport alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from celeriac.transports import register

__all__ = ["FOLDER", "GATE", "app", "make_app"]

#: The environment variable that tells a worker where its files are.
FOLDER = "TRANSPORT_TEST_FOLDER"

#: The file that lets waiting tasks go on.
GATE = "gate"


def make_app(folder: Path) -> Celery:
    """The app whose broker and results are one file in ``folder``."""
    register()
    url = f"sqlite:///{folder}/celery.db"
    app = Celery("stock", broker=url, backend=f"db+{url}", set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": 2},
        worker_prefetch_multiplier=1,
        beat_schedule={"often": {"task": "note", "schedule": 0.2, "args": ["beat"]}},
        beat_schedule_filename=f"{folder}/beat",
    )

    def write(line: str) -> None:
        with (folder / "notes").open("a") as notes:
            notes.write(f"{line}\n")

    @app.task(name="add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="total", shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="note", shared=False)
    def note(line: str) -> None:
        write(line)

    @app.task(name="third_time", shared=False, bind=True, max_retries=2)
    def third_time(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0.1)
        retries: int = self.request.retries
        return retries

    @app.task(name="nested", shared=False)
    def nested() -> str:
        task_id: str = add.delay(20, 3).id
        return task_id

    @app.task(name="wait_for_gate", shared=False, bind=True, acks_late=True)
    def wait_for_gate(self: Any, name: str) -> str:
        write(f"{name} {'again' if self.request.delivery_info.get('redelivered') else 'first'}")
        deadline = time.monotonic() + 30
        while not (folder / GATE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return name

    return app


if FOLDER in os.environ:
    app = make_app(Path(os.environ[FOLDER]))
