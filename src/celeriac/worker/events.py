"""Celery's monitoring events: queued on the event loop, published by a thread.

The messages are what ``celery.events.EventDispatcher`` of a stock worker sends: worker events one by one, task
events in batches under ``task.multi``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from celery.events import EventDispatcher, get_exchange, group_from
from celery.signals import heartbeat_sent
from kombu.exceptions import EncodeError
from kombu.messaging import Producer
from kombu.utils.encoding import safe_repr

from celeriac.worker.announce import announce_here
from celeriac.worker.compat import jsonify, load_average, utcoffset, worker_state
from celeriac.worker.connected import ConnectedThread

__all__ = ["EventPublisher"]

logger = logging.getLogger("celeriac.worker.control")

#: Seconds to let events gather before a batch is published.
LINGER = 0.01
#: Events in one message, and events waiting for a broker before the oldest are dropped.
BATCH, LIMIT = 100, 20_000

_Queued = tuple[str, float, dict[str, Any]]


class EventPublisher(ConnectedThread):
    """Publishes events; also what remote control commands see as the worker's event dispatcher.

    :meth:`send_event` may be called from any thread, does no I/O and costs next to nothing while task events are
    off. The connection is opened for the first event that needs it.

    Args:
        app: the Celery app.
        hostname: the worker's node name.
        load: returns the ``active`` and ``processed`` counts of a heartbeat; called in the thread.
        heartbeat_interval: seconds between heartbeats; ``None`` for a worker without online, heartbeat and offline
            events.
        task_events: whether task events are on from the start (``celery worker -E``).
        limit: how many events may wait before the oldest are dropped.
    """

    def __init__(
        self,
        app: Any,
        hostname: str,
        *,
        load: Callable[[], Mapping[str, int]],
        heartbeat_interval: float | None = 2.0,
        task_events: bool = False,
        limit: int = LIMIT,
    ) -> None:
        super().__init__("events")
        self.app = app
        self.hostname = hostname
        self.enabled = True
        self.groups = {"worker", "task"} if task_events else {"worker"}
        self.on_enabled: set[Callable[[], None]] = set()
        self.on_disabled: set[Callable[[], None]] = set()
        self._load = load
        self._interval = heartbeat_interval
        self._limit = limit
        self._queue: deque[_Queued] = deque(maxlen=limit)
        self._unsent: list[_Queued] = []
        self._wake = threading.Event()
        self._dropped = False
        self._announced = False
        self._next_heartbeat = 0.0
        #: Set once the worker has said that it is online, or will not for now.
        self.tried = threading.Event()
        if heartbeat_interval is None:
            self.tried.set()

    @property
    def eventer(self) -> EventPublisher:
        """What receivers of ``heartbeat_sent`` know of its sender, ``celery.worker.heartbeat.Heart``."""
        return self

    @property
    def interval(self) -> float | None:
        """Seconds between heartbeats, likewise."""
        return self._interval

    def send_event(self, type: str, /, **fields: Any) -> None:  # noqa: A002 - Celery's name for it
        """Queue one event with the fields that Celery documents for it; never blocks, never raises."""
        if not self.enabled or (type.startswith("task-") and "task" not in self.groups):
            return
        if len(self._queue) >= self._limit and not self._dropped:
            self._dropped = True
            logger.warning("events: %d events wait for the broker, dropping the oldest", self._limit)
        self._queue.append((type, time.time(), fields))
        if not self._wake.is_set():
            self._wake.set()

    def send(
        self,
        type: str,  # noqa: A002 - Celery's name for it
        blind: bool = False,
        utcoffset: Any = None,
        retry: bool = False,
        retry_policy: Any = None,
        Event: Any = None,  # noqa: N803 - Celery's name for it
        **fields: Any,
    ) -> None:
        """The same with the signature of ``EventDispatcher.send``."""
        self.send_event(type, **fields)

    def enable(self) -> None:
        """Publish events."""
        self.enabled = True
        for callback in self.on_enabled:
            callback()

    def disable(self) -> None:
        """Publish none."""
        self.enabled = False
        for callback in self.on_disabled:
            callback()

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Publish what waits soon; part of the dispatcher's interface."""
        self._wake.set()

    def request_stop(self) -> None:
        """Ask the thread to publish what waits, say goodbye and end."""
        super().request_stop()
        self._wake.set()

    def connect(self) -> Any:
        return self.app.connection_for_write()

    def needed(self) -> bool:
        while not self._queue and not self._unsent:
            if self.stopping.is_set():
                return False
            if self._interval is not None:
                return True
            self._wake.wait()
            self._wake.clear()
        return True

    def serve(self, connection: Any) -> None:
        if connection.transport.driver_type in EventDispatcher.DISABLED_TRANSPORTS:
            logger.info("events: off, Celery sends none over %s", connection.transport.driver_name)
            self.enabled = False
            self.tried.set()
            self.stopping.wait()
            return
        exchange = get_exchange(connection, name=self.app.conf.event_exchange)
        producer = Producer(
            connection, exchange=exchange, serializer=self.app.conf.event_serializer, auto_declare=False
        )
        while not self.stopping.is_set():
            self._heartbeat(producer)
            self.tried.set()
            self._publish_waiting(producer)
            self._wake.wait(self._pause())
            self._wake.clear()
            if self._queue:
                self.stopping.wait(LINGER)
        self._publish_waiting(producer)
        if self._announced:
            self._publish_worker_event(producer, "worker-offline")

    def _pause(self) -> float | None:
        return None if self._interval is None else max(0.0, self._next_heartbeat - time.monotonic())

    def _heartbeat(self, producer: Any) -> None:
        if self._interval is None or not self.enabled or time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + self._interval
        self._publish_worker_event(producer, "worker-heartbeat" if self._announced else "worker-online")
        self._announced = True

    def _publish_worker_event(self, producer: Any, event: str) -> None:
        announce_here(heartbeat_sent, self)
        fields = {
            "freq": self._interval,
            **self._load(),
            "loadavg": load_average(),
            **worker_state.SOFTWARE_INFO,
        }
        self._publish(producer, self._body((event, time.time(), fields)), event.replace("-", "."))

    def _publish_waiting(self, producer: Any) -> None:
        while True:
            # A batch leaves `_unsent` only after it was published: an outage in between costs nothing.
            if not self._unsent:
                self._unsent = self._next_batch()
            if not self._unsent:
                self._dropped = False
                return
            events = [self._body(queued) for queued in self._unsent]
            name = self._unsent[0][0]
            if len(events) == 1:
                self._publish(producer, events[0], name.replace("-", "."))
            else:
                self._publish(producer, events, f"{group_from(name)}.multi")
            self._unsent = []

    def _next_batch(self) -> list[_Queued]:
        batch: list[_Queued] = []
        while self._queue and len(batch) < BATCH:
            if batch and not self._queue[0][0].startswith("task-"):
                break
            batch.append(self._queue.popleft())
            if not batch[0][0].startswith("task-"):
                break
        return batch

    def _body(self, queued: _Queued) -> dict[str, Any]:
        name, timestamp, fields = queued
        return {
            "hostname": self.hostname,
            "utcoffset": utcoffset(),
            "pid": os.getpid(),
            "clock": self.app.clock.forward(),
            "timestamp": timestamp,
            **fields,
            "type": name,
        }

    def _publish(self, producer: Any, body: Any, routing_key: str) -> None:
        options = {
            "routing_key": routing_key,
            "exchange": producer.exchange.name,
            "declare": [producer.exchange],
            "headers": {"hostname": self.hostname},
            "delivery_mode": 1,
        }
        try:
            producer.publish(body, **options)
        except EncodeError:
            # One value that the serializer refuses must not cost the events around it.
            producer.publish(jsonify(body, unknown_type_filter=safe_repr), **options)
        self.healthy()
