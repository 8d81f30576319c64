"""Queues in this process's memory, for tests and for applications that may forget."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Sequence

from celeriac.brokers import rows
from celeriac.brokers.base import Broker, Capabilities, DeadLetter, Delayed, Publication, Received, Settlement
from celeriac.brokers.exchanges import refuse_headers, settlements_to_queues, to_queues
from celeriac.brokers.memory_queues import MemoryQueues
from celeriac.brokers.memory_topology import MemoryTopology
from celeriac.brokers.waiting import until_due
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding

__all__ = ["MemoryBroker", "MemoryQueues"]


class MemoryBroker(Broker):
    """A broker in this process's memory. Brokers of one name share their queues; nothing outlives the process.

    Args:
        name: Which queues.
        lease: Seconds that a delivery belongs to its consumer unless renewed.
    """

    capabilities = Capabilities(between_processes=False, durable=False)

    def __init__(self, name: str = "", *, lease: float = 30.0) -> None:
        self.lease = lease
        self._name = name
        self._shared = MemoryQueues.named(name)
        self._topology = MemoryTopology.named(name)
        self._opened = False
        self._turn = 0

    @property
    def _queues(self) -> MemoryQueues:
        if not self._opened:
            raise BrokerUnavailable("The broker is not open.")
        return self._shared

    async def open(self) -> None:
        """Nothing to connect to. Safe to call twice."""
        self._opened = True

    async def close(self) -> None:
        """Nothing to release; the messages stay. Safe to call twice."""
        self._opened = False

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Keep the messages. Raises TypeError for headers that JSON cannot express."""
        if not all(each.queue for each in publications):
            publications = await to_queues(self.bindings, publications)
        self._queues.insert(rows.drafts(publications))

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Remember bindings as long as the process lives."""
        refuse_headers(bindings)
        with self._topology.lock:
            for each in bindings:
                self._topology.bind(each)

    async def bindings(self, exchange: str) -> Sequence[Binding]:
        """The bindings of an exchange."""
        with self._topology.lock:
            return [each for each in self._topology.bindings.values() if each.exchange == exchange]

    async def receive(self, queues: Sequence[str], limit: int) -> Received:
        """Lease up to ``limit`` messages, fairly from the queues."""
        fair = rows.rotated(queues, self._turn)
        self._turn += 1
        taken = self._queues.take(fair, limit, self.lease, self._shared.now())
        return Received([rows.delivery(row) for row in taken], self._queues.next_due())

    async def wait(self, queues: Sequence[str], timeout: float | None = None) -> None:
        """Sleep until somebody has published something for these queues, or something falls due."""
        await until_due(lambda: self._pause(queues), self._on_change, timeout)

    async def _pause(self, queues: Sequence[str]) -> float:
        now = self._shared.now()
        if self._queues.has_ready(queues, now):
            return 0.0
        due = self._queues.next_due()
        return math.inf if due is None else due - now

    def _on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        told = False

        def tell() -> None:
            nonlocal told
            # Once until the loop has heard it, or a burst of messages would fill the loop with calls.
            if not told:
                told = True
                with contextlib.suppress(RuntimeError):  # a loop that has closed has nobody who waits
                    loop.call_soon_threadsafe(hear)

        def hear() -> None:
            nonlocal told
            told = False
            callback()

        return self._queues.listen(tell)

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """End deliveries and publish what comes of them in one step. Returns the void tags."""
        settlements = await settlements_to_queues(self.bindings, settlements)
        now = self._shared.now()
        endings = [rows.ending(settlement, now) for settlement in settlements]
        return self._queues.settle(endings, rows.successors(settlements))

    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Start the leases of these deliveries anew. Returns the void tags."""
        return self._queues.renew(tags, self.lease, self._shared.now())

    def renewer(self) -> MemoryBroker:
        """A second client of the same queues."""
        return MemoryBroker(self._name, lease=self.lease)

    async def size(self, queue: str) -> int:
        """How many messages wait to be delivered now."""
        return self._queues.size(queue, self._shared.now())

    async def delayed(self, queue: str, limit: int = 100) -> Sequence[Delayed]:
        """What waits for its time in the queue, the earliest first."""
        return [rows.delayed(row) for row in self._queues.delayed(queue, limit, self._shared.now())]

    async def purge(self, queue: str) -> int:
        """Delete the waiting and delayed messages of the queue. Returns how many."""
        return self._queues.purge(queue, self._shared.now())

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """The dead letters of one queue, or of all, newest first."""
        return [rows.dead_letter(row) for row in self._queues.dead_letters(queue, limit)]

    async def replay(self, ids: Sequence[str]) -> int:
        """Put dead letters back into their queues. Returns how many were found."""
        return self._queues.replay(rows.numbers(ids))
