"""Ends deliveries: many in one call to the broker, again and again until it has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from celery.utils.log import get_logger

from celeriac.brokers.base import Broker, Publication, Settlement
from celeriac.coalesce import Coalescer
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.settlement import Action

__all__ = ["Settler"]

logger = get_logger(__name__)

T = TypeVar("T")

_BACKOFF = (0.05, 2.0)

#: Acknowledgements that may wait for the broker without anybody waiting for them.
_UNSENT = 1000

#: How a delivery ends whose message stays, perhaps as a copy that is published.
_LEAVES = (Action.REQUEUE, Action.DEAD_LETTER)


class Settler:
    """Settles deliveries in batches. ``on_settled`` hears of each tag that needs no lease any more."""

    def __init__(self, broker: Broker, on_settled: Callable[[str], None]) -> None:
        self._broker = broker
        self._on_settled = on_settled
        # Apart: what leaves something behind waits until the broker takes that, and a RabbitMQ server that is short of
        # memory takes nothing before it has got the acknowledgements of the others.
        self._done: Coalescer[Settlement] = Coalescer(self._flush)
        self._leaving: Coalescer[Settlement] = Coalescer(self._flush)

    async def settle(self, settlement: Settlement) -> None:
        """End a delivery, and return when the broker has taken it.

        Raises BrokerUnavailable if the broker refuses for good what the delivery leaves behind.
        """
        leaves = settlement.publications or settlement.action in _LEAVES
        await (self._leaving if leaves else self._done).submit(settlement)

    def give_back(self, tag: str) -> None:
        """Have a message delivered again, and count that, without waiting."""
        self._leaving.add(Settlement(tag, Action.REQUEUE))

    async def acknowledge(self, tag: str) -> None:
        """End a delivery whose task is done. Nobody need wait for that, unless too many are on their way already."""
        settlement = Settlement(tag, Action.ACKNOWLEDGE)
        if self._done.backlog < _UNSENT:
            self._done.add(settlement)
        else:
            await self._done.submit(settlement)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish what a task that is acknowledged already leaves behind, and return when the broker has it."""
        await self._insist(lambda: self._broker.publish(publications), "publish")

    async def drain(self) -> None:
        """Wait for what is under way."""
        await self._leaving.drain()
        await self._done.drain()

    async def _flush(self, settlements: Sequence[Settlement]) -> None:
        # What leaves nothing behind is owed to the broker, whatever is wrong with it at present.
        hopeful = not any(settlement.publications for settlement in settlements)
        void = await self._insist(lambda: self._broker.settle(settlements), "settle", hopeful=hopeful)
        for tag in void:
            logger.warning("The lease of delivery %s had ended: its task may have run twice.", tag)
        for settlement in settlements:
            self._on_settled(settlement.tag)

    async def _insist(self, attempt: Callable[[], Awaitable[T]], what: str, *, hopeful: bool = True) -> T:
        """Try until the broker has answered: an outcome that is not settled runs again, and waiting is better.

        Unless it is ``hopeful``, what the broker refuses for good is raised: a successor that it cannot take must not
        hold up everybody's settlements.
        """
        delay, longest = _BACKOFF
        while True:
            try:
                return await attempt()
            except BrokerUnavailable as exc:
                if exc.permanent and not hopeful:
                    raise
                logger.error("The broker does not %s, trying again in %.2f s: %s", what, delay, exc)
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
