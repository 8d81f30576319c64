"""What RabbitMQ cannot do to a message itself, a copy does in its place: wait for its time, or be counted otherwise."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from celeriac.brokers.amqp_consuming import SHORT, Consuming
from celeriac.brokers.amqp_deliveries import Arrival, acknowledged, requeued
from celeriac.brokers.amqp_link import ANSWER_TIMEOUT
from celeriac.brokers.amqp_messages import deliveries_of, due_of, message_of
from celeriac.brokers.amqp_sending import Sender
from celeriac.brokers.base import Delivery
from celeriac.errors import BrokerUnavailable

__all__ = ["Copies", "Move"]

logger = logging.getLogger("celeriac.brokers.amqp")

#: Seconds for putting copies in the places of messages, before those are worked on as they are.
_REPLACE_TIMEOUT = 5.0


class Move(NamedTuple):
    """A message that a copy is to replace, which was delivered so often, and is due then."""

    arrival: Arrival
    deliveries: int
    due: float | None


class Copies:
    """Puts copies in the places of what ``consuming`` holds, by way of ``sender``.

    ``most_counted`` gives, by a queue's name, how many deliveries of a message RabbitMQ may count.
    """

    def __init__(self, consuming: Consuming, sender: Sender, most_counted: Callable[[str], float]) -> None:
        self._consuming = consuming
        self._sender = sender
        self._most_counted = most_counted

    def delivery(self, arrival: Arrival, moves: list[Move]) -> Delivery | None:
        """A delivery, unless the message has to wait for its time or to be counted: by a copy, one of ``moves``."""
        delivered = arrival.delivered
        deliveries = deliveries_of(delivered)
        due = due_of(delivered)
        if due and due - time.time() > SHORT:
            # A stock client's, that knows nothing of delays.
            moves.append(Move(arrival, deliveries - 1, due))
            return None
        if due and due > time.time():
            self._consuming.put_aside(arrival, due)
            return None
        if delivered.redelivered:
            counted = (delivered.header.properties.headers or {}).get("x-delivery-count")
            if type(counted) is not int:
                # A classic queue does not count. The copy does.
                moves.append(Move(arrival, deliveries, None))
                return None
            if counted >= self._most_counted(arrival.queue):
                # RabbitMQ would drop it before long. It counts the copy anew.
                moves.append(Move(arrival, deliveries - 1, None))
                return None
        return Delivery(arrival.tag, arrival.queue, message_of(delivered, arrival.queue), deliveries)

    async def replace(self, moves: Sequence[Move]) -> list[Delivery]:
        """Have copies take the places of messages. Returns what has to start without one.

        A server that takes no messages for now must not keep the worker from those that it has.
        """
        try:
            async with asyncio.timeout(_REPLACE_TIMEOUT):
                await self._sender.publish([await self._sender.copy(*each) for each in moves])
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

    async def hand_back(self, arrivals: Sequence[Arrival]) -> None:
        """Give back what nobody has started. A copy, as RabbitMQ would count a delivery for the message itself."""
        frame = acknowledged
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._sender.publish(
                    [
                        await self._sender.copy(
                            each, deliveries_of(each.delivered) - 1, due_of(each.delivered) or None
                        )
                        for each in arrivals
                    ]
                )
        except (BrokerUnavailable, TimeoutError, TypeError):
            frame = requeued
        await self._consuming.end([(each.tag, frame(each.number)) for each in arrivals])
