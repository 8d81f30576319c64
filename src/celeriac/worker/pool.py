"""The pool that ``celery worker`` builds: slots on the event loop, and threads for ``def`` tasks."""

from __future__ import annotations

import os
from typing import Any

from celery import signals
from celery.concurrency.base import BasePool

from celeriac.worker.announce import announce_here
from celeriac.worker.threads import TaskThreads

__all__ = ["EmbeddedPool", "TaskPool"]

#: Threads for ``def`` tasks where nothing else is said.
_MOST_THREADS = 64


class TaskPool(BasePool):  # type: ignore[misc]
    """Named by the setting ``worker_pool``. It runs nothing itself: the consumer's event loop does."""

    signal_safe = True

    def __init__(self, limit: int | None = None, *args: Any, **options: Any) -> None:
        super().__init__(limit, *args, **options)
        # A worker that may scale down to nothing still has to see that there is work.
        self.limit: int = _MOST_THREADS if limit is None else max(1, limit)
        self._threads_follow = not (hasattr(self.app, "settings") and self.app.settings.threads)
        threads = min(self.limit, _MOST_THREADS) if self._threads_follow else self.app.settings.threads
        # What a task makes of ``current_app`` and of signatures without one is its worker's, whichever app is the
        # process's default.
        self.threads = TaskThreads(threads, prepare=self.app.set_current)

    def on_start(self) -> None:
        announce_here(signals.worker_process_init, self._hostname)

    def on_stop(self) -> None:
        self.threads.shutdown()
        announce_here(signals.worker_process_shutdown, self._hostname, pid=os.getpid(), exitcode=0)

    on_terminate = on_stop

    @property
    def _hostname(self) -> str | None:
        """The worker's node name: Celery gives every pool ``(app, hostname)`` as ``initargs``."""
        _app, hostname = self.options.get("initargs") or (None, None)
        return hostname

    def grow(self, n: int = 1) -> None:
        """Add slots, and the threads that ``def`` tasks need to use them. Called on the worker's loop."""
        self.limit += n
        wanted = min(self.limit, _MOST_THREADS)
        if self._threads_follow and wanted > self.threads.size:
            self.threads.grow(wanted - self.threads.size)

    def shrink(self, n: int = 1) -> None:
        """Take slots away."""
        self.limit = max(1, self.limit - n)

    def _get_info(self) -> dict[str, Any]:
        """The keys that Celery documents for ``inspect stats``, and the number of threads."""
        return {
            **super()._get_info(),
            "threads": self.threads.size,
            "processes": [os.getpid()],
            "max-tasks-per-child": "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0),
            "writes": "N/A",
        }


class EmbeddedPool(TaskPool):
    """The pool of a worker inside another program, whose own code may wait for results with ``AsyncResult.get``."""

    task_join_will_block = False
