"""What an app has open on one event loop: broker, store, publisher."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celeriac import compat
from celeriac.brokers.base import Broker
from celeriac.brokers.kombu_transports import is_bridged, shortcomings
from celeriac.brokers.urls import broker_for, load_driver
from celeriac.calls import CallBuilder
from celeriac.config import AMQP_SCHEMES, DEFAULT_BROKER_URL
from celeriac.publisher import Publisher
from celeriac.routing import queue_arguments, queue_flags
from celeriac.sent import SentEvents, announcing
from celeriac.stores.base import Store
from celeriac.stores.chords import claim_seconds
from celeriac.stores.urls import load_store, store_for
from celeriac.timing import Now, system_now

__all__ = ["Connection", "Connections"]

logger = logging.getLogger("celeriac")


@dataclass(frozen=True, slots=True)
class Connection:
    """Broker, store and publisher, open on one loop."""

    broker: Broker
    store: Store
    publisher: Publisher
    calls: CallBuilder


_said: set[str] = set()


def _say_once(sentence: str) -> None:
    """Warn, once per process."""
    if sentence not in _said:
        _said.add(sentence)
        logger.warning("%s", sentence)


class _Slot:
    """One loop's connection, and how many have entered it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.connection: Connection | None = None


class Connections:
    """The connections of one app, one for each event loop that uses it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        #: The time by which the app's calls are due, and its records are dated.
        self.now: Now = system_now
        self._slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Slot] = weakref.WeakKeyDictionary()
        # Whoever asked last is mostly who asks next; a dictionary of weak keys takes ten times as long.
        self._last: tuple[Callable[[], asyncio.AbstractEventLoop | None], _Slot | None] = (lambda: None, None)

    def current(self) -> Connection | None:
        """What is open on the running loop; nothing where no loop runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        last, slot = self._last
        if last() is not loop:
            slot = self._slots.get(loop)
            if slot is not None:
                self._last = weakref.ref(loop), slot
        return slot.connection if slot else None

    async def here(self) -> Connection:
        """What is open on the running loop; opened now if nothing is, and then left open until the process ends."""
        slot = self._slots.setdefault(asyncio.get_running_loop(), _Slot())
        async with slot.lock:
            if slot.connection is None:
                slot.connection = await self._open()
            return slot.connection

    async def enter(self) -> Connection:
        """Open, or join what is open; each wants one ``leave``."""
        connection = await self.here()
        self._slots[asyncio.get_running_loop()].users += 1
        return connection

    async def leave(self) -> None:
        """The last one out closes, after what is under way has been published."""
        slot = self._slots[asyncio.get_running_loop()]
        slot.users -= 1
        if slot.users > 0 or slot.connection is None:
            return
        async with slot.lock:
            connection, slot.connection = slot.connection, None
            if connection is not None:
                await connection.publisher.close()
                await connection.store.close()
                await connection.broker.close()

    def make_broker(self) -> Broker:
        """A broker of the app's settings, not open yet."""
        settings = self._app.settings
        return broker_for(
            settings.broker_url,
            lease=settings.lease,
            options=settings.transport_options,
            queue_arguments=partial(queue_arguments, self._app),
            queue_flags=partial(queue_flags, self._app),
            delay_queue_type=self._app.conf.broker_native_delayed_delivery_queue_type,
            kept_in=settings.kept_in,
            keeper_options=settings.result_transport_options,
        )

    def make_store(self) -> Store:
        """A store of the app's settings, not open yet."""
        settings = self._app.settings
        return store_for(
            settings.result_backend or "disabled://",
            expires=settings.result_expires,
            options=settings.result_transport_options,
        )

    def make_publisher(self, broker: Broker, store: Store) -> Publisher:
        """What publishes through a broker and a store."""
        settings = self._app.settings
        return Publisher(
            broker,
            store,
            deadline=settings.publish_deadline,
            apart=settings.result_backend != settings.broker_url,
        )

    async def _open(self) -> Connection:
        # In a thread: reading the configuration imports modules.
        await asyncio.to_thread(self._load)
        broker, store = self.make_broker(), self.make_store()
        store.chord_claim = claim_seconds(self._app.conf.result_chord_join_timeout)
        store.chord_expires = self._app.conf.result_chord_expires
        # Canvas asks for it on the loop, and finding its class reads files.
        compat.set_backend(self._app, await asyncio.to_thread(self._app._get_backend))
        await broker.open()
        try:
            await store.open()
        except BaseException:
            await broker.close()
            raise
        if self._app.conf.task_send_sent_event:
            broker = announcing(broker, await asyncio.to_thread(SentEvents, self._app))
        calls = CallBuilder(self._app, self._app.propagation, self.now)
        return Connection(broker, store, self.make_publisher(broker, store), calls)

    def _load(self) -> None:
        settings = self._app.settings
        load_driver(settings.broker_url)
        load_store(settings.result_backend or "")
        if (
            settings.broker_url.partition(":")[0] in AMQP_SCHEMES
            and settings.result_backend == DEFAULT_BROKER_URL
        ):
            logger.warning(
                "The records of tasks are in celery.db of this folder, because RabbitMQ keeps none: processes "
                "elsewhere miss them. Set %s for those: a Redis server, say.",
                "celeriac_records_url" if settings.answers else "result_backend (CELERY_RESULT_BACKEND)",
            )
        if is_bridged(settings.broker_url):
            load_driver(settings.kept_in)
            _say_once(shortcomings(settings.broker_url, settings.kept_in))
        self._app.finalize(auto=True)
        _ = self._app.propagation, self._app.amqp.router, self._app.amqp.default_queue, self._app.timezone
        for task in list(self._app.tasks.values()):
            # An app whose tasks cannot run does not start, and says why.
            _ = getattr(task, "injected", None)
