"""How synchronous code waits for results in Redis: it listens while it waits, and at no other time."""

from __future__ import annotations

import asyncio
from typing import Any

from celery import states
from celery.backends import redis as stock

__all__ = ["PatientResultConsumer"]


class PatientResultConsumer(stock.ResultConsumer):  # type: ignore[misc]
    """Celery's, which subscribes to a result when somebody waits for it.

    Celery subscribes as soon as there is an object for the result, which each canvas makes for each of its parts.
    Where nobody ever waits by Celery's means, that leaves a growing number of subscriptions on a connection that
    nobody reads, and each of those objects asks Redis for something when it is deleted, perhaps on an event loop.

    Celery looks for the result as soon as it has asked for the subscription, on another connection: Redis may do the
    second first, and what is stored between the two is never heard of. So we look again at what is confirmed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._wanted: dict[str, None] = {}
        self._confirmed: list[Any] = []

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

    def _drain_one(self, pubsub: Any, timeout: float | None) -> bool:
        """As Celery's: read one message, if there is one. When none is left, look at what was confirmed."""
        if super()._drain_one(_Confirming(pubsub, self._confirmed), timeout):
            return True
        if not self._confirmed:
            return False
        with self.reconnect_on_error():
            self._look_at_confirmed()
        return True

    def _look_at_confirmed(self) -> None:
        keys = self.subscribed_to.intersection(map(self.backend.key_t, self._confirmed))
        self._confirmed.clear()
        for value in self.backend.client.mget(keys) if keys else ():
            meta = self._decode_result(value) if value else None
            if meta is not None and meta["status"] in states.READY_STATES:
                self.on_state_change(meta, None)


class _Confirming:
    """A subscription of redis-py's, as Celery reads it; what the server confirms is noted.

    Also what redis-py subscribes to again, without a word, on a new connection.
    """

    def __init__(self, pubsub: Any, confirmed: list[Any]) -> None:
        pubsub.ignore_subscribe_messages = False
        self._pubsub = pubsub
        self._confirmed = confirmed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pubsub, name)

    def get_message(self, timeout: float | None) -> Any:
        """The next message, or None after so many seconds."""
        message = self._pubsub.get_message(timeout=timeout)
        if message and message["type"] == "subscribe":
            self._confirmed.append(message["channel"])
        return message
