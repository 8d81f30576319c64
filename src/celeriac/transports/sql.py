"""The kombu transport of celeriac's SQLite queues: ``sqlite:///celery.db``.

Transport options: ``visibility_timeout`` (seconds of a lease, 30), ``delivery_limit`` (deliveries without an outcome
after which a message is dead-lettered, 5), ``polling_interval`` (seconds between two looks for changes while idle,
0.01), and kombu's ``body_encoding`` and ``deadletter_queue``.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

from sqlalchemy.engine import Connection, make_url

from celeriac.sql import messages
from celeriac.sql.messages import Draft, Ending, Taken
from celeriac.sql.stalls import Sparing, Stalls
from celeriac.transports import engines, routing, topology, virtual
from celeriac.transports.storage import Binding, Declaration, Look, Order, QueueOptions, Storage

__all__ = ["SQLStorage", "Transport"]


class SQLStorage(Storage):
    """Messages, queues and bindings in a SQLite file, shared with whoever opens the same file."""

    def __init__(self, url: str) -> None:
        self._engine, self._release = engines.acquire(url)
        self._closed = False
        self._bindings: dict[str, list[Binding]] = {}
        self._bindings_version: Hashable = None
        self._stalls, self._sparing = Stalls(), Sparing()

    def version(self) -> Hashable:
        return self._engine.version()

    def look(self, queues: Sequence[str]) -> Look:
        now = time.time()

        def operation(connection: Connection) -> Look:
            return Look(messages.has_ready(connection, queues, now), messages.next_due(connection))

        return self._engine.read(operation)

    def take(self, orders: Sequence[Order], lease: float) -> Sequence[Sequence[Taken]]:
        taken: list[list[Taken]] = []

        def operation(connection: Connection) -> None:
            now = time.time()
            spared = self._sparing.spares(self._stalls.last(), lease, now)
            taken[:] = [_take(connection, order, lease, now, spare_leases=spared) for order in orders]

        self._stalls.timed(lambda: self._engine.write(operation))
        return taken

    def put(self, drafts: Sequence[Draft]) -> None:
        self._engine.write(lambda connection: messages.insert(connection, drafts))

    def route(self, exchange: str, routing_key: str, draft: Draft) -> int:
        # Events go out all the time and mostly to nobody: that must not cost a write transaction.
        if not routing.matching(self._known_bindings(exchange), routing_key):
            return 0
        now = time.time()

        def operation(connection: Connection) -> int:
            bound = topology.bound(connection, exchange, now)
            queues = routing.matching((each for each, _ in bound), routing_key)
            options = {each.queue: option for each, option in bound}
            copies = [
                messages.Draft(
                    *draft._replace(queue=queue, expires=routing.expiry(draft, options[queue], now))
                )
                for queue in queues
            ]
            messages.insert(connection, copies)
            return len(copies)

        return self._engine.write(operation)

    def _known_bindings(self, exchange: str) -> list[Binding]:
        version = self._engine.version()
        if version != self._bindings_version:
            self._bindings, self._bindings_version = {}, version
        if exchange not in self._bindings:
            self._bindings[exchange] = self.bindings(exchange)
        return self._bindings[exchange]

    def settle(self, endings: Sequence[Ending]) -> Collection[str]:
        return self._engine.write(lambda connection: messages.settle(connection, endings))

    def keep(self, tags: Sequence[str], lease: float, queues: Sequence[Declaration]) -> Collection[str]:
        now = time.time()

        def operation(connection: Connection) -> set[str]:
            void = messages.renew(connection, tags, lease, now)
            topology.touch(connection, queues, now)
            topology.drop_expired(connection, now)
            return void

        return self._engine.write(operation)

    def queue_options(self, queue: str) -> QueueOptions | None:
        return self._engine.read(lambda connection: topology.options(connection, queue))

    def declare(self, queue: str, options: QueueOptions) -> None:
        now = time.time()
        # Publishers declare their queue on every new connection: only one that expires needs to hear of it.
        if options.expires_after is None and self.queue_options(queue) == options:
            return

        def operation(connection: Connection) -> None:
            topology.declare(connection, queue, options, now)
            topology.drop_expired(connection, now)

        self._engine.write(operation)

    def exists(self, queue: str) -> bool:
        return self._engine.read(lambda connection: topology.exists(connection, queue))

    def delete(self, queue: str) -> int:
        if not self.exists(queue):
            return 0
        return self._engine.write(lambda connection: topology.delete(connection, queue, time.time()))

    def size(self, queue: str) -> int:
        return self._engine.read(lambda connection: messages.size(connection, queue, time.time()))

    def purge(self, queue: str) -> int:
        return self._engine.write(lambda connection: messages.purge(connection, queue, time.time()))

    def bind(self, binding: Binding) -> None:
        if not self._engine.read(lambda connection: topology.has_binding(connection, binding)):
            self._engine.write(lambda connection: topology.bind(connection, binding))

    def unbind(self, bindings: Iterable[Binding]) -> None:
        unwanted = list(bindings)
        if unwanted:
            self._engine.write(lambda connection: topology.unbind(connection, unwanted))

    def bindings(self, exchange: str | None = None) -> list[Binding]:
        return self._engine.read(lambda connection: topology.bindings(connection, exchange))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()


def _take(
    connection: Connection, order: Order, lease: float, now: float, *, spare_leases: bool
) -> list[Taken]:
    if order.no_ack:
        # Such queues hold commands and events, which are worse late than never. Nobody has leases there, and whoever
        # reads them knows nothing of those of others.
        messages.drop_expired(connection, now)
        spare_leases = True
    taken = messages.take(connection, order.queues, order.limit, lease, now, spare_leases=spare_leases)
    if order.no_ack:
        messages.settle(connection, [Ending(each.tag) for each in taken])
    return taken


class Transport(virtual.Transport):
    """Shares one SQLite file between all processes of one machine."""

    can_parse_url = True
    driver_type = "sqlite"
    driver_name = "sqlite3"

    @property
    def url(self) -> str:
        """The database's URL, from whichever parts of a kombu connection hold it."""
        hostname = self.client.hostname or ""
        if "://" in hostname:
            # kombu takes a driver apart ("sqlite+pysqlite://…") and keeps the rest.
            return f"{self.client.uri_prefix}+{hostname}" if self.client.uri_prefix else hostname
        # After a failover kombu has parsed the URL itself, and the path is what it calls the virtual host.
        return f"sqlite:///{self.client.virtual_host}"

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return make_url(self.url).render_as_string(hide_password=False)

    def driver_version(self) -> str:
        return sqlite3.sqlite_version

    def open_storage(self) -> Storage:
        return SQLStorage(self.url)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {}
