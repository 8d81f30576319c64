"""The bridge to transports of kombu's where a message that was taken is gone: a broker of ours keeps what was taken.

Messages travel through the transport, so that stock clients and stock workers share it. A worker's pump takes what it
can start into the *keeper*, an ordinary broker beside the records. Leases, delivery counts, priorities, delays and dead
letters come from there.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from celeriac.brokers.base import (
    Broker,
    DeadLetter,
    Delayed,
    Publication,
    Received,
    Settlement,
)
from celeriac.brokers.kombu_mover import Mover
from celeriac.brokers.kombu_names import Names, outgoing
from celeriac.brokers.kombu_partly import Parts, Successors
from celeriac.brokers.kombu_pump import Pump
from celeriac.brokers.kombu_sources.base import Outgoing, Source
from celeriac.brokers.kombu_thread import SourceThread
from celeriac.errors import BrokerUnavailable
from celeriac.protocol import envelope
from celeriac.protocol.exchanges import Binding

__all__ = ["KombuBroker"]

logger = logging.getLogger("celeriac.brokers.kombu")

#: Seconds for one answer of the transport.
_PATIENCE = 10.0


class KombuBroker(Broker):
    """A broker on a transport of kombu's, with a keeper.

    Args:
        make_source: Makes a source of the transport, not open yet.
        keeper: A broker of ours, not open yet, that keeps what was taken and what is delayed.
        lease: Seconds that a delivery belongs to its consumer unless renewed; the keeper's by default.
    """

    def __init__(
        self, make_source: Callable[[], Source], keeper: Broker, *, lease: float | None = None
    ) -> None:
        source = make_source()
        self.lease = keeper.lease if lease is None else lease
        own = source.capabilities
        # What the keeper does the bridge can do, whatever the transport cannot.
        self.capabilities = replace(
            keeper.capabilities,
            priority=own.priority,
            between_processes=own.between_processes,
            durable=own.durable,
            atomic=own.atomic,
            fanout=own.fanout,
            shared_view=own.shared_view,
            any_text=own.any_text and keeper.capabilities.any_text,
            any_size=own.any_size,
            ordered=own.ordered,
        )
        self.place = source.place
        self._keeper = keeper
        self._names = Names(source.identity)
        self._putting = SourceThread(make_source, name="celeriac-put")
        self._taking = SourceThread(make_source, name="celeriac-take")
        self._pump = Pump(self._taking, keeper, self._names)
        self._mover = Mover(keeper, self._names, self._known_queues, self._put)
        self._successors = Successors(self.publish)
        self._opening = asyncio.Lock()
        self._opened = False
        self._listed: set[str] = set()

    async def open(self) -> None:
        """Open the keeper and start what moves messages. The transport is connected to when it is needed."""
        async with self._opening:
            if not self._opened:
                await self._keeper.open()
                self._putting.start()
                self._taking.start()
                self._opened = True
                self._mover.start()

    async def close(self) -> None:
        """Take no more, and release transport and keeper. Safe to call twice."""
        async with self._opening:
            if self._opened:
                self._opened = False
                await self._mover.stop()
                await self._pump.stop()
                await self._taking.stop()
                await self._putting.stop()
                await self._keeper.close()
                self._listed.clear()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Put the messages into the transport, and those that are delayed into the keeper.

        Raises TypeError for headers that JSON cannot express, and PartlyPublished.
        """
        self._check_open()
        parts = await Parts.of(self.bindings, publications)
        now = time.time()
        later = [at for at, each in enumerate(parts.publications) if each.due is not None and each.due > now]
        ready = sorted(set(range(len(parts.publications))).difference(later))
        try:
            if later:
                for at in ready:  # what cannot be written must not leave the others published
                    envelope.encode(
                        parts.publications[at].message, exchange="", routing_key="", delivery_tag=""
                    )
                await self._delay([parts.publications[at] for at in later])
                parts.done.update(later)
            if ready:
                await self._put(outgoing(parts.publications[at] for at in ready))
        except Exception as exc:
            error = parts.failed(exc, ready)
            if error is exc:
                raise
            raise error from exc

    async def _delay(self, later: Sequence[Publication]) -> None:
        await self._list({each.queue for each in later})
        await self._keeper.publish([self._names.kept_for_later(each) for each in later])

    async def _put(self, messages: Sequence[Outgoing]) -> None:
        await self._putting.run(lambda source: source.put(messages), deadline=_PATIENCE, again=True)

    def _check_open(self) -> None:
        if not self._opened:
            raise BrokerUnavailable("The broker is not open.")

    async def _list(self, queues: Collection[str]) -> None:
        """Have the queues among the known ones, in every process."""
        if new := set(queues) - self._listed:
            await self._keeper.bind([self._names.listing(queue) for queue in new])
            self._listed |= new
            self._mover.poke()

    async def _known_queues(self) -> list[str]:
        bound = await self._keeper.bindings(self._names.all_queues)
        return sorted({each.routing_key for each in bound} | self._listed)

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Remember bindings in the keeper."""
        self._check_open()
        await self._keeper.bind([self._names.private_binding(each) for each in bindings])

    async def bindings(self, exchange: str) -> Sequence[Binding]:
        """The bindings of an exchange that clients and workers of ours have made."""
        self._check_open()
        bound = await self._keeper.bindings(self._names.private_exchange(exchange))
        return [each._replace(exchange=exchange) for each in bound]

    async def receive(self, queues: Sequence[str], limit: int) -> Received:
        """Lease up to ``limit`` messages from the keeper, after taking what it lacks from the transport."""
        self._check_open()
        await self._list(queues)
        private = [self._names.ready(queue) for queue in queues]
        received = await self._keeper.receive(private, limit)
        deliveries = list(received.deliveries)
        if len(deliveries) < limit:
            try:
                kept = await self._pump.look(queues, limit - len(deliveries))
            except BrokerUnavailable:
                if not deliveries:
                    raise
                kept = 0
            if kept:
                received = await self._keeper.receive(private, limit - len(deliveries))
                deliveries += received.deliveries
        self._pump.surplus = max(0, self._pump.surplus - len(deliveries))
        return Received([self._names.delivery(each) for each in deliveries], received.next_due)

    async def wait(self, queues: Sequence[str], timeout: float | None = None) -> None:
        """Sleep until the keeper has something for these queues; what comes into the transport is taken there."""
        self._check_open()
        await self._list(queues)
        private = [self._names.ready(queue) for queue in queues]
        with self._pump.watching(queues) as failed:
            kept = asyncio.ensure_future(self._keeper.wait(private, timeout))
            gone = asyncio.ensure_future(failed.wait())
            try:
                await asyncio.wait((kept, gone), return_when=asyncio.FIRST_COMPLETED)
                if kept.done():
                    kept.result()
                self._pump.check()
            finally:
                kept.cancel()
                gone.cancel()

    async def rest(self) -> None:
        """Nobody receives any more: give the transport back what was taken and not received."""
        await self._pump.stop()
        left, self._pump.surplus = self._pump.surplus, 0
        if left:
            ready = [self._names.ready(queue) for queue in await self._known_queues()]
            while left > 0 and (moved := await self._mover.move(ready, fresh=True)):
                left -= moved

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """End deliveries, after publishing what comes of them. Returns the void tags."""
        self._check_open()
        if not any(each.publications for each in settlements):
            late = await self._keeper.settle(settlements)
            self._successors.forget(each.tag for each in settlements)
            return late
        # Whoever is late publishes nothing; it may be late in between, and then the task comes of it twice.
        void = set(await self._keeper.renew([each.tag for each in settlements if each.publications]))
        valid = [each for each in settlements if each.tag not in void]
        await self._successors.publish(valid)
        void |= set(await self._keeper.settle([replace(each, publications=()) for each in valid]))
        self._successors.forget(each.tag for each in settlements)
        return void

    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Start the leases of these deliveries anew. Returns the void tags."""
        self._check_open()
        return await self._keeper.renew(tags)

    def renewer(self) -> Broker | None:
        """A client of the keeper, which has the leases."""
        return self._keeper.renewer()

    def on_lost(self, listener: Callable[[Collection[str]], None]) -> None:
        """Have ``listener`` called with what the keeper has lost."""
        self._keeper.on_lost(listener)

    async def size(self, queue: str) -> int:
        """How many messages wait to be delivered now, in the transport and in the keeper."""
        self._check_open()
        await self._pump.told()
        there = await self._putting.run(lambda source: source.size(queue), deadline=_PATIENCE, again=True)
        return there + await self._keeper.size(self._names.ready(queue))

    async def delayed(self, queue: str, limit: int = 100) -> Sequence[Delayed]:
        """What waits for its time: published with a delay, or to be delivered again."""
        self._check_open()
        found = [
            await self._keeper.delayed(name, limit)
            for name in (self._names.later(queue), self._names.ready(queue))
        ]
        ordered = heapq.merge(*found, key=lambda each: each.due)
        return [self._names.delayed(each) for each in ordered][:limit]

    async def purge(self, queue: str) -> int:
        """Delete the waiting and delayed messages of the queue. Returns how many."""
        self._check_open()
        await self._pump.told()
        gone = await self._putting.run(lambda source: source.purge(queue), deadline=_PATIENCE, again=True)
        gone += await self._keeper.purge(self._names.ready(queue))
        return gone + await self._keeper.purge(self._names.later(queue))

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """The dead letters of one queue, or of all of the transport, newest first."""
        self._check_open()
        queues = await self._known_queues() if queue is None else [queue]
        found = [
            await self._keeper.dead_letters(name, limit)
            for each in queues
            for name in (self._names.ready(each), self._names.later(each))
        ]
        newest = heapq.merge(*found, key=lambda letter: letter.at, reverse=True)
        return [self._names.dead_letter(letter) for letter in newest][:limit]

    async def replay(self, ids: Sequence[str]) -> int:
        """Put dead letters back into their queues. Returns how many were found."""
        self._check_open()
        return await self._keeper.replay(ids)
