"""A broker on a transport that leases its messages: SQS and its kin.

Messages stay in the transport, which counts their deliveries and delays them as far as it can. What it cannot, the
keeper does: longer delays, dead letters, bindings.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count

from celeriac.brokers.base import Broker, DeadLetter, Delayed, Delivery, Publication, Received, Settlement
from celeriac.brokers.kombu_keeping import Keeping
from celeriac.brokers.kombu_kept import Kept
from celeriac.brokers.kombu_leases import Leases
from celeriac.brokers.kombu_outbox import Outbox
from celeriac.brokers.kombu_partly import Parts
from celeriac.brokers.kombu_polls import Arrival, Polls, arrivals
from celeriac.brokers.kombu_settling import Settling
from celeriac.brokers.kombu_sources.base import Outgoing
from celeriac.brokers.kombu_sources.held import HeldSource, Sealed, eta_in, properties_in, sealed
from celeriac.brokers.kombu_thread import SourceThread
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding
from celeriac.protocol.settlement import Action

__all__ = ["HeldBroker"]

logger = logging.getLogger("celeriac.brokers.kombu")

#: Seconds for one call.
_PATIENCE = 40.0

#: Seconds that long polls under way get when the broker is closed, and messages to be given back.
_LAST_WORDS = 1.0


class HeldBroker(Broker):
    """A broker on a transport that leases its messages.

    Args:
        make: Makes a source, not open yet; each thread has one.
        keeper: A durable broker of ours, not open yet, for what the transport cannot keep. Closed with this one.
        lease: Seconds that a delivery belongs to its consumer unless renewed.
    """

    def __init__(self, make: Callable[[], HeldSource], keeper: Broker, *, lease: float = 30.0) -> None:
        self.lease = lease
        self._make = make
        self._keeper = keeper
        self._facts = facts = make()  # never opened: asked for what it can do
        self.capabilities = facts.capabilities
        self._in = SourceThread(make, name="celeriac-receive")
        self._out = SourceThread(make, name="celeriac-publish")
        self._outbox = Outbox(self._send)
        self._polls = Polls(make, facts.longest_wait, facts.polling_interval)
        self._keeping = Keeping(keeper, facts.identity, self._send_kept)
        self._leases = Leases(facts.longest_hold, lease)
        self._settling = Settling(self._in, facts, self._leases, self._keeping, self._outbox, self.publish)
        self._numbers = count(1)
        self._prefix = secrets.token_hex(4)
        self._room = 1
        self._opened = False

    @property
    def sure_for(self) -> float:
        """Half a lease: for the other half a message may have waited here for the worker."""
        return self.lease / 2

    async def open(self) -> None:
        """Be ready; connections are made when they are needed. Safe to call twice."""
        if not self._opened:
            self._opened = True
            self._in.start()
            self._out.start()
            self._keeping.start()

    async def close(self) -> None:
        """End the threads and leave the keeper. Safe to call twice."""
        if not self._opened:
            return
        await self._hand_back(await self._polls.leave())
        self._opened = False
        await self._keeping.close()
        await self._polls.close(_LAST_WORDS)
        await self._in.stop(_LAST_WORDS)
        await self._out.stop(_LAST_WORDS)
        self._leases.forget()

    def _check(self) -> None:
        if not self._opened:
            raise BrokerUnavailable("The broker is not open.")

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Send the messages, and return when the transport, or for long delays the keeper, has each.

        All are checked before one is sent, but they are no transaction. Raises TypeError for headers that JSON cannot
        express, and PartlyPublished.
        """
        self._check()
        parts = await Parts.of(self.bindings, publications)
        now = time.time()
        made = [self._sealed(each, now) for each in parts.publications]
        for each in made:
            self._facts.check(each)
        longer = [at for at, each in enumerate(made) if each.delay > self._facts.delay_in(each.queue)]
        sent = sorted(set(range(len(made))).difference(longer))
        kept = [_kept(made[at], now + made[at].delay, parts.publications[at]) for at in longer]
        await self._keeping.delay(kept, self._facts.delay_in)
        parts.done.update(longer)
        try:
            await self._outbox.put([made[at] for at in sent])
        except Exception as exc:
            error = parts.failed(exc, sent)
            if error is exc:
                raise
            raise error from exc

    def _sealed(self, publication: Publication, now: float) -> Sealed:
        delay = 0.0 if publication.due is None else max(0.0, publication.due - now)
        outgoing = Outgoing(
            publication.queue,
            publication.message,
            publication.priority,
            delay,
            publication.exchange,
            publication.routing_key,
        )
        return sealed(outgoing, self._facts.beside_envelope)

    async def _send(self, messages: Sequence[Sealed]) -> Mapping[int, BrokerUnavailable]:
        failed = await self._out.run(lambda source: source.send(messages), deadline=_PATIENCE, again=True)
        return {n: self._facts.explained(error) for n, error in failed.items()}

    async def _send_kept(self, kept: Sequence[Kept]) -> None:
        """Send what was kept, the rest of its delay with it."""
        now = time.time()
        await self._outbox.put(
            [
                Sealed(
                    each.queue,
                    each.envelope,
                    min(max(0.0, each.at - now), self._facts.delay_in(each.queue)),
                    each.deliveries,
                    properties_in(each.envelope),
                )
                for each in kept
            ]
        )

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Remember bindings in the keeper."""
        self._check()
        await self._keeping.bind(bindings)

    async def bindings(self, exchange: str) -> Sequence[Binding]:
        """The bindings that the keeper knows."""
        self._check()
        return await self._keeping.bindings(exchange)

    # -- receiving -------------------------------------------------------------------------------------------------

    async def receive(self, queues: Sequence[str], limit: int) -> Received:
        """Take what long polls have brought, or ask for what is there now."""
        self._check()
        found: list[Arrival] = []
        if limit > 0 and queues:
            found = await self._leases.fresh(self._in, self._polls.pop(queues, limit))
            if not found:
                found = await self._in.run(
                    lambda source: arrivals(source, queues, limit, 0),
                    deadline=_PATIENCE,
                    again=True,
                    unwanted=lambda source, taken: source.give_back([each.taken for each in taken]),
                )
        deliveries = await self._without_early([self._delivery(each) for each in found])
        self._room = max(1, limit - len(deliveries))
        return Received(deliveries, self._leases.next_end())

    async def _without_early(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Put off what came before its eta, as it does from stock clients. Returns the rest."""
        now = time.time()
        early = {
            each.tag: Settlement(each.tag, Action.REQUEUE, due=eta, counted=False)
            for each in deliveries
            if isinstance(each.envelope, bytes) and (eta := eta_in(each.envelope)) is not None and eta > now
        }
        if early:
            try:
                await self.settle([*early.values()])
            except BrokerUnavailable as exc:
                logger.warning("%d messages that came early come again after a lease: %s", len(early), exc)
                for tag in early:
                    self._leases.release(tag)
        return [each for each in deliveries if each.tag not in early]

    def _delivery(self, arrival: Arrival) -> Delivery:
        tag = f"{self._prefix}-{next(self._numbers)}"
        self._leases.hold(tag, arrival)
        taken = arrival.taken
        return Delivery(tag, taken.queue, taken.envelope, taken.deliveries)

    async def wait(self, queues: Sequence[str], timeout: float | None = None) -> None:
        """Return when a long poll has brought something, which is then received."""
        self._check()
        until = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            self._polls.changed.clear()
            if self._polls.has(queues):
                return
            self._polls.check()
            self._polls.ensure(queues, self._room)
            if not await self._polls.change(until - time.monotonic()):
                return

    async def rest(self) -> None:
        """Ask for nothing more, and give back what has come and was not received."""
        await self._hand_back(await self._polls.leave())

    async def _hand_back(self, left: Sequence[Arrival]) -> None:
        if left := [each for each in left if not each.gone]:
            try:
                await self._in.run(
                    lambda source: source.give_back([each.taken for each in left]), deadline=_LAST_WORDS
                )
            except BrokerUnavailable as exc:
                logger.warning("%d messages come back when their lease ends: %s", len(left), exc)

    # -- settling --------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """Send what deliveries leave behind, and then end them."""
        self._check()
        return await self._settling.settle(settlements)

    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Start the leases of these deliveries anew. Returns the void tags."""
        self._check()
        ours = await self._leases.renewed(self._in, tags)
        return [tag for tag in tags if tag not in ours]

    def renewer(self) -> Broker:
        """A second client, with threads of its own, that knows what this one holds."""
        return _Renewer(self)

    # -- looking ---------------------------------------------------------------------------------------------------

    async def size(self, queue: str) -> int:
        """How many messages wait, as far as the transport can tell."""
        self._check()
        return await self._out.run(lambda source: source.size(queue), deadline=_PATIENCE, again=True)

    async def delayed(self, queue: str, limit: int = 100) -> Sequence[Delayed]:
        """What waits in the keeper; the transport does not tell what it delays."""
        self._check()
        return await self._keeping.delayed(queue, limit)

    async def purge(self, queue: str) -> int:
        """Delete what waits in the transport and in the keeper."""
        self._check()
        kept = await self._keeping.purge(queue)
        return kept + await self._out.run(lambda source: source.purge(queue), deadline=_PATIENCE)

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """The dead letters in the keeper, newest first."""
        self._check()
        return await self._keeping.dead_letters(queue, limit)

    async def replay(self, ids: Sequence[str]) -> int:
        """Send dead letters again. Returns how many were found."""
        self._check()
        return await self._keeping.replay(ids)


class _Renewer(HeldBroker):
    """Renews what another holds; nothing is kept, nor moved."""

    def __init__(self, holder: HeldBroker) -> None:
        super().__init__(holder._make, holder._keeper, lease=holder.lease)
        self._leases = holder._leases

    async def open(self) -> None:
        """Be ready."""
        self._opened = True
        self._in.start()

    async def close(self) -> None:
        """End the thread."""
        self._opened = False
        await self._in.stop(_LAST_WORDS)


def _kept(message: Sealed, due: float, publication: Publication) -> Kept:
    return Kept(message.queue, message.envelope, due, task_id=publication.task_id)
