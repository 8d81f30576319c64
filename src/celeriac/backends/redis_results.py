"""How synchronous code waits for results in Redis: it listens while it waits, and at no other time."""

from __future__ import annotations

import asyncio
from typing import Any

from celery.backends import redis as stock

__all__ = ["PatientResultConsumer"]


class PatientResultConsumer(stock.ResultConsumer):  # type: ignore[misc]
    """Celery's, which subscribes to a result when somebody waits for it.

    Celery subscribes as soon as there is an object for the result, which each canvas makes for each of its parts.
    Where nobody ever waits by Celery's means, that leaves a growing number of subscriptions on a connection that
    nobody reads, and each of those objects asks Redis for something when it is deleted, perhaps on an event loop.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._wanted: dict[str, None] = {}

    def consume_from(self, task_id: str) -> None:
        """Somebody may wait for this result."""
        self._wanted[task_id] = None

    def on_wait_for_pending(self, result: Any, **options: Any) -> None:
        """Somebody waits."""
        for task_id in list(self._wanted):
            self._wanted.pop(task_id, None)
            super().consume_from(task_id)
        super().on_wait_for_pending(result, **options)

    def cancel_for(self, task_id: str) -> None:
        """Nobody waits for this result any more. Called by destructors: wherever they happen to run."""
        self._wanted.pop(task_id, None)
        if asyncio._get_running_loop() is None:
            super().cancel_for(task_id)
        else:
            # A loop must not wait for Redis: whoever waits next, in a thread, also unsubscribes from this.
            self._pending_unsubscribe.add(self._get_key_for_task(task_id))
