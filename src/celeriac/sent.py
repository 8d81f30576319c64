"""``task-sent``: the event of a task's publication, where ``task_send_sent_event`` asks for it.

https://docs.celeryq.dev/en/stable/userguide/monitoring.html#task-sent. A thread publishes the events, over kombu.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Any, cast

from celery.utils.nodenames import anon_nodename
from kombu.utils.imports import symbol_by_name

from celeriac.brokers.base import Broker, Publication, Settlement

__all__ = ["SentEvents", "announcing"]

#: Seconds for what waits when a program ends.
_LAST_EVENTS = 2.0


class SentEvents:
    """Announces publications. The thread and its connection come with the first one.

    Making one imports modules: not for the event loop.
    """

    def __init__(self, app: Any) -> None:
        make = symbol_by_name("celeriac.worker.events:EventPublisher")
        self._events = make(app, anon_nodename(), load=dict, heartbeat_interval=None, task_events=True)
        self._started = False

    def announce(self, publications: Sequence[Publication], at: float) -> None:
        """Queue the events of messages that were sent at this time, in epoch seconds; never blocks."""
        if not self._started:
            self._started = True
            self._events.start()
        for publication in publications:
            self._events.send_event("task-sent", timestamp=at, **_fields(publication))

    def close(self) -> None:
        """Publish what waits. Blocks up to two seconds."""
        if self._started:
            self._events.request_stop()
            self._events.join(_LAST_EVENTS)


def announcing(broker: Broker, sent: SentEvents) -> Broker:
    """A broker that tells of each message that is published through it."""
    return cast("Broker", _AnnouncingBroker(broker, sent))


class _AnnouncingBroker:
    def __init__(self, broker: Broker, sent: SentEvents) -> None:
        self._broker = broker
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def close(self) -> None:
        await asyncio.to_thread(self._sent.close)
        await self._broker.close()

    async def publish(self, publications: Sequence[Publication]) -> None:
        # From before: a quick worker receives them before the broker's confirmation is here.
        at = time.time()
        await self._broker.publish(publications)
        self._sent.announce(publications, at)

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        at = time.time()
        void = await self._broker.settle(settlements)
        for settlement in settlements:
            if settlement.publications and settlement.tag not in void:
                self._sent.announce(settlement.publications, at)
        return void


def _fields(publication: Publication) -> dict[str, Any]:
    """As ``celery.app.amqp.AMQP`` has them."""
    headers = publication.message.headers
    return {
        "uuid": publication.task_id,
        "root_id": headers.get("root_id"),
        "parent_id": headers.get("parent_id"),
        "name": headers.get("task"),
        "args": headers.get("argsrepr"),
        "kwargs": headers.get("kwargsrepr"),
        "retries": headers.get("retries"),
        "eta": headers.get("eta"),
        "expires": headers.get("expires"),
        "queue": publication.queue,
        "exchange": publication.exchange,
        "routing_key": publication.routing_key or publication.queue,
    }
