"""From publications, and from what deliveries leave behind, to messages of AMQP's, and to the server."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiormq import exceptions as amqp
from celery.exceptions import QueueNotFound

from celeriac.brokers.amqp_deliveries import Arrival, acknowledged, discarded, requeued
from celeriac.brokers.amqp_messages import (
    DELIVERIES,
    DUE,
    burial,
    deliveries_of,
    is_expressible,
    message_of,
    properties_of,
)
from celeriac.brokers.amqp_publishing import Outgoing, Publishing, Unroutable
from celeriac.brokers.amqp_topology import DEAD, Topology, delayed_place
from celeriac.brokers.base import Publication, Settlement
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import matching
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action

if TYPE_CHECKING:
    from pamqp.base import Frame

__all__ = ["Sender", "unconfirmed"]

#: Headers that are kept of a dead letter whose headers AMQP cannot express.
_TOLD = frozenset({"id", "task", "lang"})


class Sender:
    """Makes messages, and publishes them. What was declared for them is known to ``topology``."""

    def __init__(self, topology: Topology, publishing: Publishing) -> None:
        self._topology = topology
        self._publishing = publishing

    async def outgoing(self, publication: Publication) -> list[Outgoing]:
        """The messages of a publication; what they are sent to is there then. Raises BrokerUnavailable."""
        if publication.queue:
            return [await self.to_queue(publication)]
        return await self._routed(publication)

    async def publish(self, batch: Sequence[Outgoing], confirmed: set[str] | None = None) -> None:
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
            await self._again(unconfirmed(batch, confirmed), confirmed)

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
                f"RabbitMQ returned a message to {first.routing_key!r}, as there is no such queue: make it there, or "
                "leave out no_declare in task_queues."
            ) from None

    async def to_queue(self, publication: Publication, extra: Mapping[str, Any] | None = None) -> Outgoing:
        """The message of a publication to one queue, with ``extra`` headers; a delayed one waits for it."""
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
                return [await self.to_queue(replace(publication, queue=queue)) for queue in queues]
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

    def answer(self, answer: Publication) -> Outgoing:
        """An answer for somebody who may be gone."""
        message = answer.message
        properties = properties_of(message, answer.priority, self._publishing.new_id())
        return Outgoing("", answer.queue, properties, message.body, mandatory=False, droppable=True)

    async def copy(self, arrival: Arrival, deliveries: int, due: float | None) -> Outgoing:
        """A copy of a message for the end of its queue, that was delivered so often."""
        message = message_of(arrival.delivered, arrival.queue)
        publication = Publication(message, arrival.queue, priority=message.properties["priority"], due=due)
        return await self.to_queue(publication, {DELIVERIES: deliveries} if deliveries else None)

    async def left_by(self, settlement: Settlement, arrival: Arrival) -> tuple[list[Outgoing], Frame]:
        """What is published before a delivery ends, and the frame that ends it."""
        left = [new for each in settlement.publications for new in await self.outgoing(each)]
        frame = acknowledged(arrival.number)
        if settlement.action is Action.DEAD_LETTER:
            left.append(await self._buried(arrival, settlement.reason))
        elif settlement.action is Action.DISCARD:
            frame = discarded(arrival.number)
        elif settlement.action is Action.REQUEUE:
            copied = settlement.due is not None or not settlement.counted or not self._counts(arrival)
            done = deliveries_of(arrival.delivered) - (0 if settlement.counted else 1)
            copy = await self.copy(arrival, done, settlement.due) if copied else None
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


def unconfirmed(batch: Sequence[Outgoing], confirmed: Collection[str]) -> list[Outgoing]:
    """Those of a batch that the server has not confirmed."""
    return [each for each in batch if each.properties.message_id not in confirmed]
