"""RabbitMQ, by AMQP 0-9-1: quorum queues, publisher confirms, and the delayed delivery that Celery's own workers know.

A delivery belongs to the connection that it came by: when that ends, however it ends, RabbitMQ hands the message to
somebody else at once. So there are no leases to renew. Publishing has a connection of its own, because a server that is
short of memory or disk stops reading from those that publish.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from aiormq import exceptions as amqp
from celery.exceptions import QueueNotFound

from celeriac.brokers.amqp_consuming import Arrival, Consuming, acknowledged, discarded, requeued
from celeriac.brokers.amqp_dead import DeadLetters
from celeriac.brokers.amqp_link import ANSWER_TIMEOUT, Link, places_of
from celeriac.brokers.amqp_messages import (
    DELIVERIES,
    DUE,
    burial,
    deliveries_of,
    due_of,
    is_expressible,
    message_of,
    properties_of,
)
from celeriac.brokers.amqp_publishing import Outgoing, Publishing, Unroutable
from celeriac.brokers.amqp_topology import DEAD, Topology, delayed_place
from celeriac.brokers.base import (
    Broker,
    Capabilities,
    DeadLetter,
    Delivery,
    PartlyPublished,
    Publication,
    Received,
    Settlement,
)
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding, QueueFlags, matching
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action

if TYPE_CHECKING:
    from pamqp.base import Frame

__all__ = ["AMQPBroker"]

logger = logging.getLogger("celeriac.brokers.amqp")

QUORUM: Mapping[str, Any] = {"x-queue-type": "quorum"}

#: Seconds until a due time that a consumer waits out by itself: RabbitMQ delays by whole seconds.
_SHORT = 2.0

#: Seconds after which who waits has another look: a consumer that RabbitMQ or the network has forgotten hears nothing.
_LONGEST_WAIT = 2.0

#: Seconds for giving back, at the end, what was pushed and not taken. Later it goes back by itself, and is counted.
_LAST_WORDS = 2.0


#: Seconds for putting copies in the places of messages, before those are worked on as they are.
_MOVE_TIMEOUT = 5.0

#: Headers that are kept of a dead letter whose headers AMQP cannot express.
_TOLD = frozenset({"id", "task", "lang"})


class _Move(NamedTuple):
    """A message that a copy is to replace, which was delivered so often, and is due then."""

    arrival: Arrival
    deliveries: int
    due: float | None


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
        patience = max(lease, ANSWER_TIMEOUT)
        self._consuming = Consuming(self._in, self._topology.consumed, self._topology.forget_queue, patience)
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
                    sent[at] = await self._outgoing(publications[at])
                await self._publish([outgoing for at in positions for outgoing in sent[at]], confirmed)
        except Exception as exc:
            done = [at for at, batch in sent.items() if not _unconfirmed(batch, confirmed)]
            if done:
                raise PartlyPublished(done, exc) from exc
            raise

    async def _outgoing(self, publication: Publication) -> list[Outgoing]:
        if publication.queue:
            return [await self._to_queue(publication)]
        return await self._routed(publication)

    async def _publish(self, batch: Sequence[Outgoing], confirmed: set[str] | None = None) -> None:
        """Publish; what was declared before and is gone is declared anew. The ids of what is done are added."""
        if not batch:
            return
        confirmed = set() if confirmed is None else confirmed
        try:
            await self._publishing.send(batch, confirmed)
        except Unroutable as exc:
            await self._again(exc.outgoing, confirmed)
        except BrokerUnavailable as exc:
            if not isinstance(exc.__cause__, amqp.ChannelNotFoundEntity):
                raise
            # An exchange was deleted, which has cost all of the batch its channel.
            await self._again(_unconfirmed(batch, confirmed), confirmed)

    async def _again(self, lost: Sequence[Outgoing], confirmed: set[str]) -> None:
        """Publish what reached no queue once more, after declaring anew what may have been deleted."""
        self._topology.forget()
        for each in lost:
            if each.declare is not None:
                await each.declare()
        try:
            await self._publishing.send(lost, confirmed)
        except Unroutable as exc:
            first = exc.outgoing[0]
            if first.exchange:
                raise QueueNotFound(
                    f"No queue is bound to the exchange {first.exchange!r} for the routing key {first.routing_key!r}: "
                    "name it in task_queues, or start a worker that consumes from it."
                ) from None
            raise BrokerUnavailable(
                f"RabbitMQ returned a message to {first.routing_key!r}: the queue was deleted, or is not declared here."
            ) from None

    async def _to_queue(self, publication: Publication, extra: Mapping[str, Any] | None = None) -> Outgoing:
        queue, due = publication.queue, publication.due
        exchange, key, message = "", queue, publication.message
        headers = dict(extra or {})
        declare = partial(self._topology.queue, queue)
        if due is not None and (left := due - time.time()) > 0:
            headers[DUE] = math.ceil(due * 1e6)
            if (seconds := math.floor(left)) >= 1:
                declare = partial(self._topology.delay, queue)
                exchange, key = delayed_place(seconds, queue)
                # Its time to live counts for where it waits, too, and its end there would be the end of the delay.
                message = replace(message, properties={**message.properties, "expiration": None})
        await declare()
        properties = properties_of(message, publication.priority, self._publishing.new_id(), headers)
        return Outgoing(exchange, key, properties, message.body, declare=declare)

    async def _routed(self, publication: Publication) -> list[Outgoing]:
        """A publication to an exchange; one that is delayed to the queues that its publisher knows of.

        Where it knows none, the exchange finds them now, and who receives it first has it wait.
        """
        key, headers = publication.routing_key, {}
        if publication.due is not None and publication.due > time.time():
            headers[DUE] = math.ceil(publication.due * 1e6)
            queues = matching(publication.bindings, key, publication.message.headers)
            if queues:
                return [await self._to_queue(replace(publication, queue=queue)) for queue in queues]
        declare = partial(self._declare, publication)
        await declare()
        properties = properties_of(
            publication.message, publication.priority, self._publishing.new_id(), headers
        )
        mandatory = publication.exchange_type != "fanout"
        return [
            Outgoing(
                publication.exchange, key, properties, publication.message.body, mandatory, declare=declare
            )
        ]

    async def _declare(self, publication: Publication) -> None:
        for bound in publication.bindings:
            await self._topology.bind(bound)
        await self._topology.exchange(publication.exchange, publication.exchange_type)

    async def reply(self, answers: Sequence[Publication]) -> None:
        """Publish to queues that their readers have declared, and that may be gone with them."""
        self._check()
        await self._publish([self._answer(each) for each in answers])

    def _answer(self, answer: Publication) -> Outgoing:
        message = answer.message
        properties = properties_of(message, answer.priority, self._publishing.new_id())
        return Outgoing("", answer.queue, properties, message.body, mandatory=False, droppable=True)

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
            await self._hand_back(await self._consuming.leave(queues))
        arrivals = await self._consuming.take(queues, limit)
        moves: list[_Move] = []
        deliveries = [each for arrival in arrivals if (each := self._delivery(arrival, moves)) is not None]
        if moves:
            deliveries += await self._move(moves)
        return Received(deliveries, self._consuming.next_due())

    def _delivery(self, arrival: Arrival, moves: list[_Move]) -> Delivery | None:
        """A delivery, unless the message has to wait for its time or to be counted: by a copy, one of ``moves``."""
        delivered = arrival.delivered
        deliveries = deliveries_of(delivered)
        due = due_of(delivered)
        if due and due - time.time() > _SHORT:
            # A stock client's, that knows nothing of delays.
            moves.append(_Move(arrival, deliveries - 1, due))
            return None
        if due and due > time.time():
            self._consuming.put_aside(arrival, due)
            return None
        if delivered.redelivered and "x-delivery-count" not in (delivered.header.properties.headers or {}):
            # A classic queue does not count. The copy does.
            moves.append(_Move(arrival, deliveries, None))
            return None
        return Delivery(arrival.tag, arrival.queue, message_of(delivered, arrival.queue), deliveries)

    async def _move(self, moves: Sequence[_Move]) -> list[Delivery]:
        """Have copies take the places of messages. Returns what has to start without one.

        A server that takes no messages for now must not keep the worker from those that it has.
        """
        try:
            async with asyncio.timeout(_MOVE_TIMEOUT):
                await self._publish([await self._copy(*each) for each in moves])
        except (BrokerUnavailable, TimeoutError, TypeError) as exc:
            logger.warning("%d messages were not put off or counted: %s", len(moves), exc or "no answer")
        else:
            await self._consuming.end(
                [(each.arrival.tag, acknowledged(each.arrival.number)) for each in moves]
            )
            return []
        for arrival, _, due in moves:
            if due is not None:
                self._consuming.put_aside(arrival, due)
        return [
            Delivery(arrival.tag, arrival.queue, message_of(arrival.delivered, arrival.queue), deliveries + 1)
            for arrival, deliveries, due in moves
            if due is None
        ]

    async def _copy(self, arrival: Arrival, deliveries: int, due: float | None) -> Outgoing:
        """A copy of a message for the end of its queue, that was delivered so often."""
        message = message_of(arrival.delivered, arrival.queue)
        publication = Publication(message, arrival.queue, priority=message.properties["priority"], due=due)
        return await self._to_queue(publication, {DELIVERIES: deliveries} if deliveries else None)

    async def rest(self) -> None:
        """Have nothing pushed any more, and give back what was pushed and not taken."""
        await self._hand_back(await self._consuming.leave())

    async def _hand_back(self, arrivals: Sequence[Arrival]) -> None:
        """Give back what nobody has started. A copy, as RabbitMQ would count a delivery for the message itself."""
        frame = acknowledged
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._publish(
                    [
                        await self._copy(
                            each, deliveries_of(each.delivered) - 1, due_of(each.delivered) or None
                        )
                        for each in arrivals
                    ]
                )
        except (BrokerUnavailable, TimeoutError, TypeError):
            frame = requeued
        await self._consuming.end([(each.tag, frame(each.number)) for each in arrivals])

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
                    arrival.left = each, *await self._left_by(each, arrival)
            await self._publish([new for _, arrival in ending for new in arrival.left[1]], confirmed)  # type: ignore[index]
        finally:
            for _, arrival in ending:
                if arrival.left is not None:
                    each, left, frame = arrival.left
                    arrival.left = each, _unconfirmed(left, confirmed), frame
        await self._consuming.end([(each.tag, arrival.left[2]) for each, arrival in ending])  # type: ignore[index]
        return [each.tag for each, arrival in held if arrival is None]

    async def _left_by(self, settlement: Settlement, arrival: Arrival) -> tuple[list[Outgoing], Frame]:
        """What is published before a delivery ends, and the frame that ends it."""
        left = [new for each in settlement.publications for new in await self._outgoing(each)]
        frame = acknowledged(arrival.number)
        if settlement.action is Action.DEAD_LETTER:
            left.append(await self._buried(arrival, settlement.reason))
        elif settlement.action is Action.DISCARD:
            frame = discarded(arrival.number)
        elif settlement.action is Action.REQUEUE:
            copied = settlement.due is not None or not settlement.counted or not self._counts(arrival)
            done = deliveries_of(arrival.delivered) - (0 if settlement.counted else 1)
            copy = await self._copy(arrival, done, settlement.due) if copied else None
            if copy is not None and is_expressible(copy.properties):
                left.append(copy)
            else:
                frame = requeued(arrival.number)
        return left, frame

    def _counts(self, arrival: Arrival) -> bool:
        return self._topology.is_quorum(arrival.queue)

    async def _buried(self, arrival: Arrival, reason: str) -> Outgoing:
        message = message_of(arrival.delivered, arrival.queue)
        task_id = message.headers.get("id")
        publication = Publication(message, arrival.queue, task_id=task_id if isinstance(task_id, str) else "")
        await self._topology.queue(DEAD)
        headers = burial(publication, reason, deliveries_of(arrival.delivered), uuid4().hex)
        kept = Message(
            message.headers,
            {**message.properties, "expiration": None},
            message.body,
            message.content_type,
            message.content_encoding,
        )
        properties = properties_of(kept, message.properties["priority"], self._publishing.new_id(), headers)
        if not is_expressible(properties):
            kept = replace(kept, headers={name: each for name, each in kept.headers.items() if name in _TOLD})
            properties = properties_of(kept, 0, self._publishing.new_id(), headers)
        return Outgoing("", DEAD, properties, message.body, declare=partial(self._topology.queue, DEAD))

    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Say which tags are void; there is nothing to renew."""
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
            lambda letter: self._to_queue(
                Publication(letter.envelope, letter.queue, priority=letter.envelope.properties["priority"])  # type: ignore[union-attr,arg-type]
            ),
            self._publish,
        )


def _unconfirmed(batch: Sequence[Outgoing], confirmed: Collection[str]) -> list[Outgoing]:
    return [each for each in batch if each.properties.message_id not in confirmed]
