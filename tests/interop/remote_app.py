"""One set of tasks, as a plain Celery app or as one of ours: ``REMOTE_TEST_KIND`` says which.

The tasks are synchronous, so that both kinds of worker can run them; they talk to the test through files.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery.exceptions import Ignore, Reject

__all__ = ["FOLDER", "KIND", "SETTINGS", "URL", "app", "make_app"]

KIND = "REMOTE_TEST_KIND"
URL = "REMOTE_TEST_URL"
FOLDER = "REMOTE_TEST_FOLDER"
#: Settings as JSON, over the app's own.
SETTINGS = "REMOTE_TEST_SETTINGS"


def make_app(kind: str, url: str, folder: Path, settings: dict[str, Any]) -> Any:
    """An app of this kind; the broker's URL is that of the results, too, but for RabbitMQ's."""
    results = f"sqlite:///{folder}/celery.db" if url.startswith("amqp") else url
    backend = f"db+{results}" if results.startswith("sqlite") else results
    if kind == "ours":
        from celeriac import Celery

        app: Any = Celery("remote", broker=url, backend=results, set_as_current=False)
    else:
        import celery

        from celeriac.transports import register

        register()
        app = celery.Celery("remote", broker=url, backend=backend, set_as_current=False)
        app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)
    if url.startswith("amqp"):
        app.conf.update(task_default_queue_type="quorum", task_create_missing_queue_type="quorum")
    app.conf.update(beat_schedule_filename=f"{folder}/beat", **settings)
    _define(app, folder)
    return app


def _define(app: Any, folder: Path) -> None:
    def write(line: str) -> None:
        with (folder / "notes").open("a") as notes:
            notes.write(f"{line}\n")

    @app.task(name="add", shared=False)
    def add(x, y):  # type: ignore[no-untyped-def]
        return x + y

    @app.task(name="note", shared=False)
    def note(line):  # type: ignore[no-untyped-def]
        write(f"{line} {time.time()}")

    @app.task(name="wait", shared=False, bind=True)
    def wait(self, name):  # type: ignore[no-untyped-def]
        """Run until there is a file of this name."""
        write(f"start {name}")
        deadline = time.monotonic() + 40
        while not (folder / name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        write(f"end {name}")
        return name

    @app.task(name="fail", shared=False)
    def fail(text):  # type: ignore[no-untyped-def]
        raise ValueError(text)

    @app.task(name="retry", shared=False, bind=True, max_retries=2)
    def retry(self):  # type: ignore[no-untyped-def]
        if self.request.retries < 1:
            raise self.retry(exc=KeyError("not yet"), countdown=0.05)
        return self.request.retries

    @app.task(name="reject", shared=False, acks_late=True)
    def reject():  # type: ignore[no-untyped-def]
        raise Reject("unwanted", requeue=False)

    @app.task(name="ignore", shared=False)
    def ignore():  # type: ignore[no-untyped-def]
        raise Ignore

    @app.task(name="sleep", shared=False)
    def sleep(seconds):  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.01)


if KIND in os.environ:
    app = make_app(
        os.environ[KIND],
        os.environ[URL],
        Path(os.environ[FOLDER]),
        json.loads(os.environ.get(SETTINGS, "{}")),
    )
