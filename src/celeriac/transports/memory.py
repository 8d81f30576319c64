"""The kombu transport of celeriac's queues in memory: ``memory://`` with ``broker_transport = "celeriac-memory"``.

What a process publishes to ``memory://name`` is seen by every broker and every connection of this process with the
same name. kombu's own ``memory://`` transport is another world, and stays what it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from celeriac.brokers.memory_queues import MemoryQueues
from celeriac.brokers.memory_topology import MemoryTopology
from celeriac.sql.messages import Draft, Ending, Taken
from celeriac.transports import routing, virtual
from celeriac.transports.storage import Binding, Declaration, Look, Order, QueueOptions, Storage

__all__ = ["MemoryStorage", "Transport"]


class MemoryStorage(Storage):
    """Messages, queues and bindings in this process. ``on_change`` is called on the thread of a change."""

    def __init__(self, name: str, on_change: Any) -> None:
        self._queues = MemoryQueues.named(name)
        self._topology = MemoryTopology.named(name)
        self._changes = 0
        self._on_change = weakref.WeakMethod(on_change)
        self._stop_listening = self._queues.listen(self._changed)

    def _changed(self) -> None:
        self._changes += 1
        on_change = self._on_change()
        if on_change is not None:
            on_change()

    def now(self) -> float:
        return self._queues.now()

    def version(self) -> Hashable:
        return self._changes

    def look(self, queues: Sequence[str]) -> Look:
        return Look(self._queues.has_ready(queues, self._queues.now()), self._queues.next_due())

    def take(self, orders: Sequence[Order], lease: float) -> Sequence[Sequence[Taken]]:
        now = self._queues.now()
        return [self._take(order, lease, now) for order in orders]

    def _take(self, order: Order, lease: float, now: float) -> list[Taken]:
        if order.no_ack:
            self._queues.drop_expired(now)
        taken = self._queues.take(order.queues, order.limit, lease, now)
        if order.no_ack:
            self._queues.settle([Ending(each.tag) for each in taken])
        return taken

    def put(self, drafts: Sequence[Draft]) -> None:
        self._queues.insert(drafts)

    def route(self, exchange: str, routing_key: str, draft: Draft) -> int:
        now = self._queues.now()
        with self._topology.lock:
            self._drop_expired(now)
            queues = routing.matching(self.bindings(exchange), routing_key)
            copies = [
                draft._replace(
                    queue=queue, expires=routing.expiry(draft, self._topology.options.get(queue), now)
                )
                for queue in queues
            ]
        if copies:
            self._queues.insert(copies)
        return len(copies)

    def settle(self, endings: Sequence[Ending]) -> Collection[str]:
        return self._queues.settle(endings)

    def keep(self, tags: Sequence[str], lease: float, queues: Sequence[Declaration]) -> Collection[str]:
        now = self._queues.now()
        with self._topology.lock:
            for declared in queues:
                if declared.queue not in self._topology.options:
                    for binding in declared.bindings:
                        self._topology.bind(binding)
                self._topology.declare(declared.queue, declared.options, now)
            self._drop_expired(now)
        return self._queues.renew(tags, lease, now)

    def _drop_expired(self, now: float) -> None:
        for queue in self._topology.expired(now):
            self.delete(queue)
        self._queues.drop_expired(now)

    def queue_options(self, queue: str) -> QueueOptions | None:
        return self._topology.options.get(queue)

    def declare(self, queue: str, options: QueueOptions) -> None:
        now = self._queues.now()
        with self._topology.lock:
            self._topology.declare(queue, options, now)
            self._drop_expired(now)

    def exists(self, queue: str) -> bool:
        return queue in self._topology.options or self.size(queue) > 0

    def delete(self, queue: str) -> int:
        with self._topology.lock:
            self._topology.delete(queue)
        return self.purge(queue)

    def size(self, queue: str) -> int:
        return self._queues.size(queue, self._queues.now())

    def purge(self, queue: str) -> int:
        return self._queues.purge(queue, self._queues.now())

    def bind(self, binding: Binding) -> None:
        with self._topology.lock:
            self._topology.bind(binding)

    def unbind(self, bindings: Iterable[Binding]) -> None:
        with self._topology.lock:
            for bound in list(bindings):
                self._topology.bindings.pop((bound.exchange, bound.routing_key, bound.queue), None)

    def bindings(self, exchange: str | None = None) -> list[Binding]:
        with self._topology.lock:
            return [bound for bound in self._topology.bindings.values() if exchange in (None, bound.exchange)]

    def close(self) -> None:
        self._stop_listening()


class Transport(virtual.Transport):
    """Shares the queues of one name between the threads of this process."""

    can_parse_url = True
    driver_type = "celeriac-memory"
    driver_name = "memory"

    @property
    def name(self) -> str:
        """Which queues: what stands between ``memory://`` and the end of the URL."""
        hostname = self.client.hostname or ""
        if "://" not in hostname:
            # After a failover kombu has parsed the URL itself.
            hostname = f"memory://{hostname}/{self.client.virtual_host}"
        parts = urlsplit(hostname)
        return unquote(parts.netloc + parts.path).strip("/")

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return f"memory://{quote(self.name)}"

    def driver_version(self) -> str:
        return "N/A"

    def open_storage(self) -> Storage:
        return MemoryStorage(self.name, self.wake)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {}
