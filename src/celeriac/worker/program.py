"""``celery worker``, with defaults that suit coroutines, and an end that does not wait for stuck threads."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery import signals
from celery.apps.worker import Worker as CeleryWorker
from celery.concurrency import get_implementation
from celery.utils.log import get_logger

from celeriac.worker.announce import announce_here
from celeriac.worker.loop import threads_left
from celeriac.worker.pool import TaskPool
from celeriac.worker.unsupported import unsupported

__all__ = ["Worker"]

logger = get_logger(__name__)


class Worker(CeleryWorker):  # type: ignore[misc]
    """Celery's worker program."""

    def setup_defaults(self, concurrency: Any = None, **options: Any) -> None:
        """As Celery's; a worker of ours that was not told its concurrency gets slots for many coroutines."""
        super().setup_defaults(concurrency, **options)
        if not concurrency and not self.app.conf.worker_concurrency and _is_ours(self.pool_cls):
            self.concurrency = self.app.settings.concurrency

    def on_consumer_ready(self, consumer: Any) -> None:
        """As Celery's: say so, and send ``worker_ready``."""
        if not isinstance(self.pool, TaskPool):
            super().on_consumer_ready(consumer)
            return
        announce_here(signals.worker_ready, consumer)
        logger.info("%s ready.", self.hostname)

    def should_use_eventloop(self) -> bool:
        """Whether Celery's own event loop runs the pool. Not ours, which has its own."""
        return not _is_ours(self.pool_cls) and bool(super().should_use_eventloop())

    def start(self) -> None:
        """Run until stopped."""
        if isinstance(self.pool, TaskPool):
            for sentence in unsupported(self):
                logger.warning(sentence)
        super().start()
        if isinstance(self.pool, TaskPool) and threads_left(timeout=0.5):
            # The interpreter would wait for them at its exit, and their tasks have been handed back.
            if self._persistence is not None:
                self._persistence.save()  # the rest of ``--statedb``, which Celery leaves to that exit
            logging.shutdown()
            for stream in (sys.__stdout__, sys.__stderr__):
                if stream is not None:
                    stream.flush()
            os._exit(self.exitcode or 0)


def _is_ours(pool: Any) -> bool:
    implementation = get_implementation(pool)
    return isinstance(implementation, type) and issubclass(implementation, TaskPool)
