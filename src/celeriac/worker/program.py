"""``celery worker``, with defaults that suit coroutines, and an end that does not wait for stuck threads."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery.apps.worker import Worker as CeleryWorker
from celery.concurrency import get_implementation

from celeriac.worker.loop import threads_left
from celeriac.worker.pool import TaskPool

__all__ = ["Worker"]


class Worker(CeleryWorker):  # type: ignore[misc]
    """Celery's worker program."""

    def setup_defaults(self, concurrency: Any = None, **options: Any) -> None:
        """As Celery's; a worker of ours that was not told its concurrency gets slots for many coroutines."""
        super().setup_defaults(concurrency, **options)
        if not concurrency and not self.app.conf.worker_concurrency and _is_ours(self.pool_cls):
            self.concurrency = self.app.settings.concurrency

    def start(self) -> None:
        """Run until stopped."""
        super().start()
        if isinstance(self.pool, TaskPool) and threads_left(timeout=0.5):
            # The interpreter would wait for them at its exit, and their tasks have been handed back.
            logging.shutdown()
            for stream in (sys.__stdout__, sys.__stderr__):
                if stream is not None:
                    stream.flush()
            os._exit(self.exitcode or 0)


def _is_ours(pool: Any) -> bool:
    implementation = get_implementation(pool)
    return isinstance(implementation, type) and issubclass(implementation, TaskPool)
