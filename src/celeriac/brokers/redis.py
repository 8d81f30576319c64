"""Queues in Redis or Valkey, in the layout of kombu's Redis transport, so that stock clients and workers share them.

What a worker takes is under a lease from the instant at which it leaves its list: one script does both. The scripts are
in ``lua``; ``lua/queues.lua`` tells what is kept under which key.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from celeriac.brokers.base import Broker, DeadLetter, Delayed, Delivery, Publication, Received, Settlement
from celeriac.brokers.exchanges import refuse_headers, to_queues
from celeriac.brokers.redis_exchanges import ExchangeLayout, Listeners, to_listeners
from celeriac.brokers.redis_keys import Layout, script
from celeriac.brokers.redis_messages import (
    Tags,
    dead_letter,
    delayed_messages,
    deliveries,
    draft_batch,
    envelope_of,
    settle_arguments,
)
from celeriac.brokers.redis_stock import StockRestorer
from celeriac.brokers.redis_tending import Tender
from celeriac.brokers.redis_waiting import Waiting
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding, is_fanout
from celeriac.protocol.settlement import Action
from celeriac.redis.link import Link
from celeriac.redis.scripts import Script
from celeriac.redis.server import Server

__all__ = ["RedisBroker"]

_ACKNOWLEDGE = script("acknowledge")
_DEAD = script("dead")
_LOOK = script("look")
_PUBLISH = script("publish")
_PURGE = script("purge")
_RECEIVE = script("receive")
_RENEW = script("renew")
_REPLAY = script("replay")
_SETTLE = script("settle")
_SIZE = script("size")

#: Receives without a reply that are taken back by name; the rest comes back when its lease ends.
_MOST_LOST = 64

#: Settlements without a reply that are remembered.
_MOST_UNSURE = 10_000


class RedisBroker(Broker):
    """A broker on one Redis server, or on a group of them with sentinels.

    Args:
        url: As :meth:`celeriac.redis.server.Server.from_url` takes it.
        lease: Seconds that a delivery belongs to its consumer unless renewed.
        options: Celery's ``broker_transport_options``: those of the connection, those of
            :class:`~celeriac.brokers.redis_keys.Layout`, and ``visibility_timeout``, the seconds after which a message
            that a stock worker took and never acknowledged is put back.

    Raises:
        ConfigurationError: The URL or an option cannot work, or redis-py is missing.
    """

    def __init__(self, url: str, *, lease: float = 30.0, options: Mapping[str, Any] | None = None) -> None:
        options = options or {}
        self.lease = lease
        self._url, self._options = url, options
        self._server = Server.from_url(url, options)
        self._layout = Layout(options, self._server.db)
        self._exchanges = ExchangeLayout(self._layout, options, self._server.db)
        self._listeners = Listeners(self._server, self._layout, self._exchanges)
        self._tags = Tags(self._layout)
        self._opening = asyncio.Lock()
        self._opened: Link | None = None
        self._waiting = Waiting(self._server, self._layout, self._look)
        self._tender = Tender(self._run)
        self._stock = StockRestorer(self._run, self._layout, options)
        self._name = ""
        self._receives = 0
        # Receives whose reply did not come, and how many they asked for; and what was settled without an answer.
        self._lost: dict[str, int] = {}
        self._unsure: set[str] = set()
        self._plans: dict[tuple[str, ...], tuple[Any, ...]] = {}

    @property
    def _link(self) -> Link:
        if self._opened is None:
            raise BrokerUnavailable("The broker is not open.")
        return self._opened

    def _run(self, of: Script, *arguments: Any) -> asyncio.Future[Any]:
        return self._link.start(of, self._layout.keys, (*self._layout.names, *arguments))

    async def open(self) -> None:
        """Be ready; the connection is made when it is needed. Safe to call twice."""
        async with self._opening:
            if self._opened is None:
                link = Link.shared(self._server)
                await link.open()
                self._opened = link
                self._name = secrets.token_hex(8)

    async def close(self) -> None:
        """Leave no connection and no task behind. Safe to call twice."""
        async with self._opening:
            link, self._opened = self._opened, None
            if link is not None:
                self._listeners.close()
                await self._tender.close()
                await self._waiting.close()
                await link.close()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Store the messages, all or none. Raises TypeError for headers that JSON cannot express."""
        link = self._link
        if not all(each.queue for each in publications):
            publications = await self._through_exchanges(publications)
        if not publications:
            return
        batch = draft_batch(publications, self._layout)
        if len(batch.lists) == 1 and not batch.delayed:
            ((queue, step), texts) = next(iter(batch.lists.items()))
            if step == self._layout.step_of[0]:
                # Whoever blocks on the list hears of it.
                await link.send("LPUSH", self._layout.list_of(queue, step), *texts)
                return
        await self._run(_PUBLISH, *batch.arguments())
        if batch.delayed:
            self._tender.expect(min(due for _, _, due, _ in batch.delayed))

    async def _through_exchanges(self, publications: Sequence[Publication]) -> Sequence[Publication]:
        """Tell the listeners of fanout exchanges, and return what is for queues."""
        queued, heard = to_listeners(publications)
        queued = await to_queues(self.bindings, queued)
        for each in heard:
            text = envelope_of(each, self._layout, uuid4().hex)[1]
            await self._link.send(
                "PUBLISH", self._exchanges.channel_of(each.exchange, each.routing_key), text
            )
        return queued

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Remember bindings where kombu looks for them; those to fanout exchanges last as long as this broker."""
        refuse_headers(bindings)
        for each in bindings:
            if is_fanout(each):
                await self._listeners.listen(self._link, each)
                continue
            member = self._exchanges.member(each)
            for table in self._exchanges.tables_of(each.exchange):
                await self._link.send("SADD", table, member)

    async def bindings(self, exchange: str) -> Sequence[Binding]:
        """The bindings of an exchange."""
        try:
            members = await self._link.send("SMEMBERS", self._exchanges.tables_of(exchange)[0])
        except BrokerUnavailable as exc:
            exc.unconfirmed = False  # who publishes has asked, and sent nothing yet
            raise
        return [self._exchanges.binding(exchange, member) for member in members]

    async def receive(self, queues: Sequence[str], limit: int) -> Received:
        """Lease up to ``limit`` messages: the highest priorities first, and fairly from the queues."""
        await self._stock.sweep_if_time()
        unique = tuple(dict.fromkeys(queues))
        self._receives += 1
        base = f"{self._name}-{self._receives:x}"
        lost = list(self._lost.items())
        again = [part for each in lost for part in each]
        start = (base, self.lease, max(0, limit), self._receives)
        try:
            reply = await self._run(_RECEIVE, *start, *self._plan(unique), *again)
        except BaseException:
            # Of a long outage the first are kept, because only those can have reached the server.
            if len(self._lost) < _MOST_LOST:
                self._lost[base] = limit
            raise
        for name, _ in lost:
            self._lost.pop(name, None)
        now, next_due = float(reply[0]), float(reply[1]) if reply[1] else None
        found, early = deliveries(reply[2], reply[3], unique, base, self._tags)
        if early:
            found = await self._put_back(found, [(place, eta) for place, eta in early if eta > now])
        # Redis' clock is not ours.
        return Received(found, None if next_due is None else time.time() + next_due - now)

    def _plan(self, queues: tuple[str, ...]) -> tuple[Any, ...]:
        """The arguments of a receive that are the same each time."""
        plan = self._plans.get(queues)
        if plan is None:
            steps = self._layout.steps
            endings = [self._layout.ending_of(queue) for queue in queues]
            if len(self._plans) > 100:
                self._plans.clear()
            plan = self._plans[queues] = (len(queues), len(steps), *queues, *endings, *steps)
        return plan

    async def _put_back(self, found: list[Delivery], early: Sequence[tuple[int, float]]) -> list[Delivery]:
        """Delay what came before its eta, as it does from stock clients. Returns the rest."""
        if not early:
            return found
        settlements = [
            Settlement(found[place].tag, Action.REQUEUE, due=eta, counted=False) for place, eta in early
        ]
        await self._run(_SETTLE, *settle_arguments(settlements, self._layout))
        places = {place for place, _ in early}
        return [delivery for place, delivery in enumerate(found) if place not in places]

    async def wait(self, queues: Sequence[str], timeout: float | None = None) -> None:
        """Sleep until somebody has put something into these queues, or something falls due."""
        _ = self._link
        await self._waiting.wait(tuple(dict.fromkeys(queues)), timeout)

    async def _look(self, queues: Sequence[str]) -> float:
        """Seconds until something can be received, as far as is known now."""
        await self._stock.sweep_if_time()
        pause = await self._run(_LOOK, *self._layout.lists_of(queues))
        return float(pause) if pause else math.inf

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """End deliveries and publish what comes of them, all in one step. Returns the void tags."""
        if not settlements:
            return ()
        if any(not new.queue for each in settlements for new in each.publications):
            settlements = [
                replace(each, publications=tuple(await self._through_exchanges(each.publications)))
                for each in settlements
            ]
        try:
            void = await self._settle(settlements)
        except BaseException:
            if len(self._unsure) < _MOST_UNSURE:
                self._unsure.update(each.tag for each in settlements)
            raise
        if not void and not self._unsure:
            return ()
        # Settled once without an answer, it is void because it is done.
        void_tags = {tag.decode() for tag in void} - self._unsure
        self._unsure.difference_update(each.tag for each in settlements)
        return void_tags

    async def _settle(self, settlements: Sequence[Settlement]) -> Sequence[bytes]:
        done = [
            each.tag
            for each in settlements
            if (each.action is Action.ACKNOWLEDGE or each.action is Action.DISCARD) and not each.publications
        ]
        if len(done) == len(settlements):
            return list(await self._run(_ACKNOWLEDGE, *dict.fromkeys(done)))
        void = await self._run(_SETTLE, *settle_arguments(settlements, self._layout))
        dues = [each.due for each in settlements if each.due is not None]
        dues += [new.due for each in settlements for new in each.publications if new.due is not None]
        if dues:
            self._tender.expect(min(dues))
        return list(void)

    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Start the leases of these deliveries anew. Returns the void tags."""
        if not tags:
            return ()
        return {tag.decode() for tag in await self._run(_RENEW, self.lease, *tags)}

    def renewer(self) -> RedisBroker:
        """A second client of the same queues."""
        return RedisBroker(self._url, lease=self.lease, options=self._options)

    async def size(self, queue: str) -> int:
        """How many messages wait to be delivered now."""
        return int(await self._run(_SIZE, queue, *self._layout.steps))

    async def delayed_size(self, queue: str) -> int:
        """How many messages of the queue wait for their time."""
        return int(await self._link.send("ZCARD", self._layout.delayed_of(queue)))

    async def delayed(self, queue: str, limit: int = 100) -> Sequence[Delayed]:
        """What waits for its time in the queue, the earliest first."""
        after = f"({time.time()}"
        place = self._layout.delayed_of(queue)
        found = await self._link.send(
            "ZRANGEBYSCORE", place, after, "+inf", "WITHSCORES", "LIMIT", 0, max(0, limit)
        )
        return delayed_messages(queue, found)

    async def purge(self, queue: str) -> int:
        """Delete the waiting and delayed messages of the queue. Returns how many."""
        return int(await self._run(_PURGE, queue, *self._layout.steps))

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """The dead letters of one queue, or of all, newest first."""
        if limit <= 0:
            return []
        of_queue = ("", "") if queue is None else ("1", queue)
        found = await self._run(_DEAD, *of_queue, limit)
        return [dead_letter(id_, letter) for id_, letter in zip(found[::2], found[1::2], strict=True)]

    async def replay(self, ids: Sequence[str]) -> int:
        """Put dead letters back into their queues. Returns how many were found."""
        return int(await self._run(_REPLAY, *ids)) if ids else 0
