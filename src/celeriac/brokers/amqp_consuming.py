"""Consumers: RabbitMQ pushes messages into a buffer, from which the worker takes them."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from aiormq import exceptions as amqp
from aiormq.abc import ChannelFrame, DeliveredMessage

from celeriac.brokers.amqp_deliveries import Arrival, Consumer, Share, merged, requeued
from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained
from celeriac.brokers.amqp_link import Link
from celeriac.brokers.amqp_messages import due_of
from celeriac.errors import BrokerUnavailable

if TYPE_CHECKING:
    from pamqp.base import Frame

__all__ = ["SHORT", "Consuming"]

logger = logging.getLogger("celeriac.brokers.amqp")

#: Seconds until a due time that a consumer waits out by itself: RabbitMQ delays by whole seconds.
SHORT = 2.0

#: Frames in one write.
_AT_ONCE = 256

#: What AMQP can express as a prefetch.
_MOST = 65_535


class Consuming:
    """What was pushed and not settled, over one link.

    ``declare`` has a queue be there, which ``forget`` says it is not; ``listener`` hears of tags that went back with
    their channel. A server that does not answer for ``patience`` seconds is lost.
    """

    def __init__(
        self,
        link: Link,
        declare: Callable[[str], Awaitable[None]],
        forget: Callable[[str], None],
        patience: float,
    ) -> None:
        self._link = link
        self._declare = declare
        self._forget = forget
        self._patience = patience
        self._arrivals = count()
        self._consumers: dict[str, Consumer] = {}
        self._held: dict[str, Arrival] = {}
        self._dropped: list[Arrival] = []
        self._waiting: list[tuple[float, int, Arrival]] = []
        self._turn = 0
        self._lock = asyncio.Lock()
        self.changed = asyncio.Event()
        self.listener: Callable[[Collection[str]], None] | None = None

    # -- taking ----------------------------------------------------------------------------------------------------

    async def take(self, queues: Sequence[str], limit: int) -> list[Arrival]:
        """Up to so many messages that are there, of each queue in turn. Raises BrokerUnavailable."""
        async with self._lock:
            await self._return_dropped()
            fresh = await self._consume(queues, limit)
            if fresh or not any(self._consumers[queue].ready for queue in queues):
                while not await self._barrier(queues):
                    await self._consume(queues, limit)
        self._wake_due()
        return self._pop(queues, limit)

    async def ensure(self, queues: Sequence[str]) -> None:
        """Have at least one message of each queue pushed when there is one. Raises BrokerUnavailable."""
        if all(queue in self._consumers and self._consumers[queue].room > 0 for queue in queues):
            return
        # To cancel a question to the server closes its channel, and what is held would go back with it.
        work = asyncio.ensure_future(self._ensure(queues))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(work)

    async def _ensure(self, queues: Sequence[str]) -> None:
        async with self._lock:
            await self._consume(queues, 1)

    async def leave(self, queues: Collection[str] | None = None) -> list[Arrival]:
        """Consume no more but from these queues. Returns what was pushed by the others and not taken; it stays held."""
        left: list[Arrival] = []
        async with self._lock:
            for consumer in list(self._consumers.values()):
                if consumer.queue in (queues or ()):
                    continue
                for name in list(consumer.shares):
                    await self._withdraw(consumer, name)
                left += consumer.ready
                consumer.ready.clear()
                left += [arrival for _, _, arrival in self._waiting if arrival.consumer is consumer]
                self._waiting = [each for each in self._waiting if each[2].consumer is not consumer]
        heapq.heapify(self._waiting)
        return [arrival for arrival in left if arrival.tag in self._held]

    def consumes_others(self, queues: Collection[str]) -> bool:
        """Whether the server pushes messages of other queues than these."""
        return any(each.shares and each.queue not in queues for each in self._consumers.values())

    def has(self, queues: Sequence[str]) -> bool:
        """Whether something of these queues can be taken now."""
        self._wake_due()
        return any(queue in self._consumers and self._consumers[queue].ready for queue in queues)

    def has_consumer(self, queue: str) -> bool:
        """Whether RabbitMQ pushes messages of a queue, as far as is known."""
        return queue in self._consumers

    def next_due(self) -> float | None:
        """When the next message that waits here for its time is due, in epoch seconds."""
        return self._waiting[0][0] if self._waiting else None

    def _pop(self, queues: Sequence[str], limit: int) -> list[Arrival]:
        buffers = [self._consumers[queue].ready for queue in queues if queue in self._consumers]
        taken: list[Arrival] = []
        if buffers and limit > 0:
            self._turn += 1
            start = self._turn % len(buffers)
            buffers = buffers[start:] + buffers[:start]
            while len(taken) < limit and any(buffers):
                for buffer in buffers:
                    if buffer and len(taken) < limit:
                        arrival = buffer.popleft()
                        arrival.taken = True
                        arrival.consumer.started += 1
                        taken.append(arrival)
        return taken

    def put_aside(self, arrival: Arrival, due: float) -> None:
        """Keep a message, which stays ours, until its time."""
        if arrival.taken:
            arrival.taken = False
            arrival.consumer.started -= 1
        heapq.heappush(self._waiting, (due, next(self._arrivals), arrival))

    def _wake_due(self) -> None:
        now = time.time()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, arrival = heapq.heappop(self._waiting)
            if arrival.tag in self._held:
                arrival.consumer.ready.append(arrival)

    # -- consumers -------------------------------------------------------------------------------------------------

    async def _consume(self, queues: Sequence[str], limit: int) -> bool:
        """Have a consumer for each queue that may be pushed so many messages. Whether more were asked for."""
        made = False
        for queue in queues:
            consumer = self._consumers.get(queue)
            if consumer is None or consumer.channel.is_closed:
                consumer = await self._open(queue)
            consumer.most = max(consumer.most, consumer.started + limit)
            if (missing := limit - consumer.room) > 0:
                await self._ask_for(consumer, missing)
                made = True
            elif consumer.prefetch > 2 * consumer.most:
                await self._ask_for_less(consumer)
        return made

    async def _open(self, queue: str) -> Consumer:
        await self._declare(queue)
        channel = await self._link.channel()
        consumer = self._consumers[queue] = Consumer(queue, channel)
        channel.closing.add_done_callback(partial(self._channel_ended, consumer))
        channel.on_consumer_cancel_callbacks.add(partial(self._cancelled, consumer))
        return consumer

    async def _ask_for(self, consumer: Consumer, number: int) -> None:
        channel, name = consumer.channel, f"celeriac-{next(self._arrivals)}"
        share = consumer.shares[name] = Share(min(number, _MOST))
        arrived = partial(self._arrived, consumer, share)
        try:
            async with self._answering():
                await channel.basic_qos(prefetch_count=share.prefetch)
                await channel.basic_consume(consumer.queue, arrived, consumer_tag=name)
        except BrokerUnavailable as exc:
            consumer.shares.pop(name, None)
            if isinstance(exc.__cause__, amqp.ChannelNotFoundEntity):
                self._forget(consumer.queue)
            raise

    async def _ask_for_less(self, consumer: Consumer) -> None:
        """Give up one share, after many messages had come before their time and others were asked for meanwhile."""
        spare = consumer.prefetch - consumer.most
        for name, share in list(consumer.shares.items()):
            if share.prefetch <= spare:
                await self._withdraw(consumer, name)
                return

    async def _withdraw(self, consumer: Consumer, name: str) -> None:
        async with self._answering():
            if not consumer.channel.is_closed:
                await consumer.channel.basic_cancel(name)
        consumer.shares.pop(name, None)

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """The server has to answer what is asked inside. Raises BrokerUnavailable."""
        try:
            with self._link.doubting():
                async with asyncio.timeout(self._patience):
                    yield
        except TimeoutError:
            await self._link.drop()
            raise BrokerUnavailable(f"RabbitMQ at {self._link.place.shown} does not answer.") from None
        except DRIVER_ERRORS as exc:
            raise explained(exc, self._link.place.shown) from exc

    async def _barrier(self, queues: Sequence[str]) -> bool:
        """Return when what was there before is here: a channel's answers come after what was pushed before them.

        False if RabbitMQ knows nothing of a consumer: it forgets to say so where a queue was deleted and made again.
        """
        whole = True
        async with self._answering():
            for queue in queues:
                consumer = self._consumers[queue]
                answer = await consumer.channel.queue_declare(queue, passive=True)
                if consumer.shares and not answer.consumer_count:
                    self._cancelled(consumer, answer)
                    whole = False
        return whole

    async def _arrived(self, consumer: Consumer, share: Share, delivered: DeliveredMessage) -> None:
        tag = f"{next(self._arrivals)}"
        arrival = self._held[tag] = Arrival(tag, consumer, share, delivered)
        share.held += 1
        consumer.unsettled.add(arrival.number)
        due = due_of(delivered)
        if due and 0 < due - time.time() <= SHORT:
            self.put_aside(arrival, due)
        else:
            consumer.ready.append(arrival)
        self.changed.set()

    def _cancelled(self, consumer: Consumer, _frame: object) -> None:
        """The server has ended a consumer: its queue was deleted, or its leader is gone."""
        if self._consumers.get(consumer.queue) is not consumer:
            return
        logger.warning("RabbitMQ has ended the consumption of %r: it is begun anew.", consumer.queue)
        del self._consumers[consumer.queue]
        consumer.shares.clear()
        self._dropped += consumer.ready
        consumer.ready.clear()
        self._forget(consumer.queue)
        self.changed.set()

    async def _return_dropped(self) -> None:
        """Give back what a consumer had pushed before it was ended; where its queue is gone, so are they."""
        dropped, self._dropped = self._dropped, []
        await self.end([(arrival.tag, requeued(arrival.number)) for arrival in dropped])

    def _channel_ended(self, consumer: Consumer, future: asyncio.Future[object]) -> None:
        if self._consumers.get(consumer.queue) is consumer:
            del self._consumers[consumer.queue]
        if not future.cancelled() and (exc := future.exception()) is not None and "timeout" in str(exc):
            logger.error(
                "RabbitMQ took back messages of %r that were held for longer than its consumer_timeout, 30 minutes if "
                "not set: set consumer_timeout in rabbitmq.conf to more milliseconds than your longest task takes.",
                consumer.queue,
            )
        lost = [tag for tag, arrival in self._held.items() if arrival.consumer is consumer]
        for tag in lost:
            del self._held[tag]
        self.changed.set()
        if lost and self.listener is not None:
            self.listener(lost)

    # -- settling --------------------------------------------------------------------------------------------------

    def holding(self, tag: str) -> Arrival | None:
        """The message of a tag that is not void."""
        return self._held.get(tag)

    async def end(self, endings: Sequence[tuple[str, Frame]]) -> None:
        """Tell the server what becomes of these, by frames for their channels. Raises BrokerUnavailable."""
        writes: dict[Consumer, dict[int, Frame]] = {}
        for tag, frame in endings:
            arrival = self._held.pop(tag, None)
            if arrival is None:
                continue
            arrival.share.held -= 1
            arrival.consumer.started -= arrival.taken
            writes.setdefault(arrival.consumer, {})[arrival.number] = frame
        try:
            for consumer, ended in writes.items():
                consumer.unsettled.difference_update(ended)
                channel, frames = consumer.channel, merged(ended, consumer.unsettled)
                for start in range(0, len(frames), _AT_ONCE):
                    if channel.is_closed:
                        break
                    chunk = ChannelFrame.marshall(channel.number, frames[start : start + _AT_ONCE])
                    with self._link.doubting():
                        await channel.write_queue.put(chunk)  # type: ignore[attr-defined]
        except DRIVER_ERRORS as exc:
            raise explained(exc, self._link.place.shown) from exc

    def lose_all(self) -> None:
        """The connection is gone, and all that was held with it."""
        self._consumers.clear()
        self._waiting.clear()
        self._dropped.clear()
        lost = list(self._held)
        self._held.clear()
        self.changed.set()
        if lost and self.listener is not None:
            self.listener(lost)
