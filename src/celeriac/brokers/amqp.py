"""RabbitMQ, by AMQP 0-9-1: quorum queues, publisher confirms, and the delayed delivery that Celery's own workers know.

A delivery belongs to the connection that it came by: when that ends, however it ends, RabbitMQ hands the message to
somebody else at once. So there are no leases to renew. Publishing has a connection of its own, because a server that is
short of memory or disk stops reading from those that publish.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from celeriac.brokers.amqp_consuming import Consuming
from celeriac.brokers.amqp_copies import Copies, Move
from celeriac.brokers.amqp_dead import DeadLetters
from celeriac.brokers.amqp_link import ANSWER_TIMEOUT, Link, places_of
from celeriac.brokers.amqp_publishing import Outgoing, Publishing
from celeriac.brokers.amqp_sending import Sender, unconfirmed
from celeriac.brokers.amqp_topology import Topology
from celeriac.brokers.base import (
    Broker,
    Capabilities,
    DeadLetter,
    PartlyPublished,
    Publication,
    Received,
    Settlement,
)
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding, QueueFlags

__all__ = ["AMQPBroker"]

QUORUM: Mapping[str, Any] = {"x-queue-type": "quorum"}

#: Seconds after which who waits has another look: a consumer that RabbitMQ or the network has forgotten hears nothing.
_LONGEST_WAIT = 2.0

#: Seconds for giving back, at the end, what was pushed and not taken. Later it goes back by itself, and is counted.
_LAST_WORDS = 2.0


class AMQPBroker(Broker):
    """A broker on a RabbitMQ server or cluster.

    Args:
        url: ``amqp://user:password@host:port/vhost``, or ``amqps://``; ``?heartbeat=seconds``. Several, with ``;``
            between them, are the servers of one cluster.
        lease: Seconds within which a silent connection is to be noticed.
        options: Celery's ``broker_transport_options``; ``ssl`` among them as in ``broker_use_ssl``.
        queue_arguments: Gives the arguments with which a queue is declared, by its name; quorum queues by default.
        queue_flags: Gives the flags with which it is declared; durable unless said otherwise.
        delay_queue_type: ``quorum`` or ``classic``, as ``broker_native_delayed_delivery_queue_type``.

    Raises:
        ConfigurationError: The URL or an option cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float = 30.0,
        options: Mapping[str, Any] | None = None,
        queue_arguments: Callable[[str], Mapping[str, Any]] | None = None,
        queue_flags: Callable[[str], QueueFlags] | None = None,
        delay_queue_type: str = "quorum",
    ) -> None:
        self.lease = lease
        arguments_of = queue_arguments or (lambda _: QUORUM)
        places = places_of(url, options or {}, lease)
        self.capabilities = Capabilities(
            priority="x-max-priority" in arguments_of(""),
            lease=False,
            atomic=False,
            peek=False,
            lists_bindings=False,
            any_text=False,
            shared_view=False,
        )
        self._out = Link(places, self._publishing_lost)
        self._in = Link(places, self._consuming_lost)
        flags_of = queue_flags or (lambda _: QueueFlags())
        self._topology = Topology(self._out, arguments_of, flags_of, delay_queue_type)
        self._publishing = Publishing(self._out)
        self._sender = Sender(self._topology, self._publishing)
        patience = max(lease, ANSWER_TIMEOUT)
        self._consuming = Consuming(self._in, self._topology.consumed, self._topology.forget_queue, patience)
        self._copies = Copies(self._consuming, self._sender, self._topology.most_counted)
        self._letters = DeadLetters(self._out, self._topology, self._publishing)
        self._opened = False

    async def open(self) -> None:
        """Be ready; connections are made when they are needed. Safe to call twice."""
        self._opened = True

    async def close(self) -> None:
        """End the connections: what was not settled goes back to its queue. Safe to call twice."""
        if self._opened:
            with contextlib.suppress(TimeoutError, BrokerUnavailable):
                async with asyncio.timeout(_LAST_WORDS):
                    await self.rest()
        self._opened = False
        self._consuming.listener = None
        self._topology.close()
        await asyncio.gather(self._in.close(), self._out.close())
        self._consuming.lose_all()

    def _check(self) -> None:
        if not self._opened:
            raise BrokerUnavailable("The broker is not open.")

    def _publishing_lost(self) -> None:
        self._topology.forget()

    def _consuming_lost(self) -> None:
        self._consuming.lose_all()

    @property
    def sure_for(self) -> float:
        """A lease, or less where RabbitMQ gives up silent connections sooner."""
        return min(self.lease, self._in.place.silence or self.lease)

    def renewer(self) -> None:
        """Nothing need be renewed."""

    def on_lost(self, listener: Callable[[Collection[str]], None]) -> None:
        """Have ``listener`` called with the tags of deliveries whose channel or connection has ended."""
        self._consuming.listener = listener

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish, and return when RabbitMQ has confirmed each message.

        All are checked before one is sent, but they are no transaction. Raises TypeError for headers that AMQP cannot
        express.
        """
        self._check()
        sent: dict[int, list[Outgoing]] = {}
        confirmed: set[str] = set()
        try:
            # Those that may find no queue first: then nothing else has been published.
            for routed in (True, False):
                positions = [at for at, each in enumerate(publications) if routed is not bool(each.queue)]
                for at in positions:
                    sent[at] = await self._sender.outgoing(publications[at])
                await self._sender.publish([outgoing for at in positions for outgoing in sent[at]], confirmed)
        except Exception as exc:
            done = [at for at, batch in sent.items() if not unconfirmed(batch, confirmed)]
            if done:
                raise PartlyPublished(done, exc) from exc
            raise

    async def reply(self, answers: Sequence[Publication]) -> None:
        """Publish to queues that their readers have declared, and that may be gone with them."""
        self._check()
        await self._sender.publish([self._sender.answer(each) for each in answers])

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Declare exchanges, queues and bindings."""
        self._check()
        for bound in bindings:
            await self._topology.bind(bound)

    async def bindings(self, exchange: str) -> Sequence[Binding]:
        """Nothing: RabbitMQ finds the queues itself, and AMQP cannot ask it for its bindings."""
        return []

    # -- receiving -------------------------------------------------------------------------------------------------

    async def receive(self, queues: Sequence[str], limit: int) -> Received:
        """Take what RabbitMQ has pushed.

        It pushes as many messages of each queue as were asked for, so a worker of several queues may hold some that it
        has no slot for yet.
        """
        self._check()
        if self._consuming.consumes_others(queues):
            await self._copies.hand_back(await self._consuming.leave(queues))
        arrivals = await self._consuming.take(queues, limit)
        moves: list[Move] = []
        deliveries = [
            each for arrival in arrivals if (each := self._copies.delivery(arrival, moves)) is not None
        ]
        if moves:
            deliveries += await self._copies.replace(moves)
        return Received(deliveries, self._consuming.next_due())

    async def rest(self) -> None:
        """Have nothing pushed any more, and give back what was pushed and not taken."""
        await self._copies.hand_back(await self._consuming.leave())

    async def wait(self, queues: Sequence[str], timeout: float | None = None) -> None:
        """Return when a message was pushed, or may have become due."""
        self._check()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(_LONGEST_WAIT, math.inf if timeout is None else timeout)
        while True:
            self._consuming.changed.clear()
            # Each time: what waits for its time takes the place of what need not wait.
            await self._consuming.ensure(queues)
            if self._consuming.has(queues):
                return
            due = self._consuming.next_due()
            until = deadline if due is None else min(deadline, loop.time() + max(0.0, due - time.time()))
            try:
                async with asyncio.timeout_at(until):
                    await self._consuming.changed.wait()
            except TimeoutError:
                if loop.time() >= deadline:
                    return
            if not self._in.connected:
                return  # whoever waits takes from then on, which connects again

    # -- settling --------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """Publish what deliveries leave behind, and end them when that is confirmed."""
        self._check()
        held = [(each, self._consuming.holding(each.tag)) for each in settlements]
        ending = [(each, arrival) for each, arrival in held if arrival is not None]
        confirmed: set[str] = set()
        try:
            for each, arrival in ending:
                # Where it failed before, what is confirmed must not be published a second time.
                if arrival.left is None or arrival.left[0] is not each:
                    arrival.left = each, *await self._sender.left_by(each, arrival)
            await self._sender.publish([new for _, arrival in ending for new in arrival.left[1]], confirmed)  # type: ignore[index]
        finally:
            for _, arrival in ending:
                if arrival.left is not None:
                    each, left, frame = arrival.left
                    arrival.left = each, unconfirmed(left, confirmed), frame
        await self._consuming.end([(each.tag, arrival.left[2]) for each, arrival in ending])  # type: ignore[index]
        return [each.tag for each, arrival in held if arrival is None]

    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Say which tags are void, after an answer of the server's: there is nothing to renew, but much to be heard.

        Raises BrokerUnavailable.
        """
        self._check()
        if any(self._consuming.holding(tag) is not None for tag in tags):
            await self._in.ask()
        return [tag for tag in tags if self._consuming.holding(tag) is None]

    # -- looking ---------------------------------------------------------------------------------------------------

    async def size(self, queue: str) -> int:
        """How many messages are ready: what was pushed to a worker is not, started or not."""
        self._check()
        return await self._topology.size(queue)

    async def purge(self, queue: str) -> int:
        """Delete what is ready. What is delayed waits in queues that all queues share, and stays."""
        self._check()
        return await self._topology.purge(queue)

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """The dead letters, newest first; they are looked at one after the other, and put back."""
        self._check()
        return await self._letters.find(queue, limit)

    async def replay(self, ids: Sequence[str]) -> int:
        """Publish dead letters to their queues once more, and then take them out."""
        self._check()
        return await self._letters.replay(
            ids,
            lambda letter: self._sender.to_queue(
                Publication(letter.envelope, letter.queue, priority=letter.envelope.properties["priority"])  # type: ignore[union-attr,arg-type]
            ),
            self._sender.publish,
        )
