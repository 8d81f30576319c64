"""Consumers: RabbitMQ pushes messages into a buffer, from which the worker takes them."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from aiormq.abc import ChannelFrame, DeliveredMessage
from pamqp import commands as spec

from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained
from celeriac.brokers.amqp_link import Link
from celeriac.brokers.amqp_messages import due_of

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel
    from pamqp.base import Frame

__all__ = ["Arrival", "Consuming"]

logger = logging.getLogger("celeriac.brokers.amqp")

#: Frames in one write.
_AT_ONCE = 256


class Arrival:
    """A message that the server has handed over: ``tag`` is ours, ``number`` the server's on its channel."""

    __slots__ = ("consumer", "delivered", "number", "tag")

    def __init__(self, tag: str, consumer: _Consumer, number: int, delivered: DeliveredMessage) -> None:
        self.tag, self.consumer, self.number, self.delivered = tag, consumer, number, delivered

    @property
    def queue(self) -> str:
        return self.consumer.queue


class _Consumer:
    """One queue's channel and buffer. ``room`` is how many messages the server may still push."""

    def __init__(self, queue: str, channel: AbstractChannel) -> None:
        self.queue = queue
        self.channel = channel
        self.name = ""
        self.prefetch = 0
        self.held = 0  # of those that the present consumer got, buffered or not
        self.ready: deque[Arrival] = deque()
        self.numbers = count()

    @property
    def room(self) -> int:
        return self.prefetch - self.held


class Consuming:
    """What was pushed and not settled, over one link.

    ``declare`` has a queue be there; ``listener`` hears of tags that went back with their channel.
    """

    def __init__(self, link: Link, declare: Callable[[str], Awaitable[None]], arrivals: count[int]) -> None:
        self._link = link
        self._declare = declare
        self._arrivals = arrivals
        self._consumers: dict[str, _Consumer] = {}
        self._held: dict[str, tuple[Arrival, str]] = {}
        self._waiting: list[tuple[float, int, Arrival]] = []
        self._turn = 0
        self._lock = asyncio.Lock()
        self.changed = asyncio.Event()
        self.listener: Callable[[Collection[str]], None] | None = None

    # -- taking ----------------------------------------------------------------------------------------------------

    async def take(self, queues: Sequence[str], limit: int) -> list[Arrival]:
        """Up to so many messages that are there, of each queue in turn. Raises BrokerUnavailable."""
        async with self._lock:
            fresh = await self._consume(queues, limit)
            if fresh or not any(self._consumers[queue].ready for queue in queues):
                while not await self._barrier(queues):
                    await self._consume(queues, limit)
        self._wake_due()
        return self._pop(queues, limit)

    async def ensure(self, queues: Sequence[str]) -> None:
        """Have at least one message of each queue pushed when there is one. Raises BrokerUnavailable."""
        async with self._lock:
            await self._consume(queues, 1)

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
                        taken.append(buffer.popleft())
        return taken

    def put_aside(self, arrival: Arrival, due: float) -> None:
        """Keep a message, which stays ours, until its time."""
        heapq.heappush(self._waiting, (due, next(self._arrivals), arrival))

    def _wake_due(self) -> None:
        now = time.time()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, arrival = heapq.heappop(self._waiting)
            if arrival.tag in self._held:
                arrival.consumer.ready.append(arrival)

    # -- consumers -------------------------------------------------------------------------------------------------

    async def _consume(self, queues: Sequence[str], limit: int) -> bool:
        """Have a consumer for each queue that may be pushed so many messages. Whether one was made."""
        made = False
        for queue in queues:
            consumer = self._consumers.get(queue)
            if consumer is None or consumer.channel.is_closed:
                consumer = await self._open(queue)
            if limit > 0 and consumer.room + len(consumer.ready) < limit:
                await self._prefetch(consumer, limit - len(consumer.ready))
                made = True
        return made

    async def _open(self, queue: str) -> _Consumer:
        await self._declare(queue)
        channel = await self._link.channel()
        consumer = self._consumers[queue] = _Consumer(queue, channel)
        channel.closing.add_done_callback(partial(self._channel_ended, consumer))
        channel.on_consumer_cancel_callbacks.add(partial(self._cancelled, consumer))
        return consumer

    async def _prefetch(self, consumer: _Consumer, number: int) -> None:
        """Consume anew, with another prefetch: it cannot be changed for a consumer that is there."""
        channel = consumer.channel
        try:
            if consumer.name:
                await channel.basic_cancel(consumer.name)
            await channel.basic_qos(prefetch_count=number)
            consumer.prefetch, consumer.held = number, 0
            consumer.name = f"celeriac-{next(self._arrivals)}"
            await channel.basic_consume(
                consumer.queue, partial(self._arrived, consumer, consumer.name), consumer_tag=consumer.name
            )
        except DRIVER_ERRORS as exc:
            consumer.name = ""
            raise explained(exc, self._link.place.shown) from exc

    async def _barrier(self, queues: Sequence[str]) -> bool:
        """Return when what was there before is here: a channel's answers come after what was pushed before them.

        False if RabbitMQ knows nothing of a consumer: it forgets to say so where a queue was deleted and made again.
        """
        whole = True
        try:
            for queue in queues:
                consumer = self._consumers[queue]
                answer = await consumer.channel.queue_declare(queue, passive=True)
                if consumer.name and not answer.consumer_count:
                    self._cancelled(consumer, answer)
                    whole = False
        except DRIVER_ERRORS as exc:
            raise explained(exc, self._link.place.shown) from exc
        return whole

    async def _arrived(self, consumer: _Consumer, name: str, delivered: DeliveredMessage) -> None:
        tag = f"{next(self._arrivals)}"
        arrival = Arrival(tag, consumer, delivered.delivery_tag or 0, delivered)
        self._held[tag] = (arrival, name)
        if consumer.name == name:
            consumer.held += 1
        due = due_of(delivered)
        if due and 0 < due - time.time() <= 2.0:
            self.put_aside(arrival, due)
        else:
            consumer.ready.append(arrival)
        self.changed.set()

    def _cancelled(self, consumer: _Consumer, _frame: object) -> None:
        """The server has ended a consumer: its queue was deleted, or its leader is gone."""
        logger.warning("RabbitMQ has ended the consumption of %r: it is begun anew.", consumer.queue)
        consumer.name, consumer.prefetch, consumer.held = "", 0, 0
        self._consumers.pop(consumer.queue, None)
        self.changed.set()

    def _channel_ended(self, consumer: _Consumer, future: asyncio.Future[object]) -> None:
        if self._consumers.get(consumer.queue) is consumer:
            del self._consumers[consumer.queue]
        if not future.cancelled() and (exc := future.exception()) is not None and "timeout" in str(exc):
            logger.error(
                "RabbitMQ took back messages of %r that were held for longer than its consumer_timeout, 30 minutes if "
                "not set: set consumer_timeout in rabbitmq.conf to more milliseconds than your longest task takes.",
                consumer.queue,
            )
        lost = [tag for tag, (arrival, _) in self._held.items() if arrival.consumer is consumer]
        for tag in lost:
            del self._held[tag]
        self.changed.set()
        if lost and self.listener is not None:
            self.listener(lost)

    # -- settling --------------------------------------------------------------------------------------------------

    def holding(self, tag: str) -> Arrival | None:
        """The message of a tag that is not void."""
        found = self._held.get(tag)
        return found[0] if found else None

    async def end(self, endings: Sequence[tuple[str, Frame]]) -> None:
        """Tell the server what becomes of these, by frames for their channels. Raises BrokerUnavailable."""
        writes: dict[AbstractChannel, list[Frame]] = {}
        for tag, frame in endings:
            found = self._held.pop(tag, None)
            if found is None:
                continue
            arrival, name = found
            if arrival.consumer.name == name:
                arrival.consumer.held -= 1
            writes.setdefault(arrival.consumer.channel, []).append(frame)
        try:
            for channel, frames in writes.items():
                for start in range(0, len(frames), _AT_ONCE):
                    if channel.is_closed:
                        break
                    chunk = ChannelFrame.marshall(channel.number, frames[start : start + _AT_ONCE])
                    await channel.write_queue.put(chunk)  # type: ignore[attr-defined]
        except DRIVER_ERRORS as exc:
            raise explained(exc, self._link.place.shown) from exc

    def lose_all(self) -> None:
        """The connection is gone, and all that was held with it."""
        self._consumers.clear()
        self._waiting.clear()
        lost = list(self._held)
        self._held.clear()
        self.changed.set()
        if lost and self.listener is not None:
            self.listener(lost)


def acknowledged(number: int) -> Frame:
    """The frame that ends a message."""
    return spec.Basic.Ack(delivery_tag=number)


def requeued(number: int) -> Frame:
    """The frame that puts a message back where it was."""
    return spec.Basic.Nack(delivery_tag=number, requeue=True)


def discarded(number: int) -> Frame:
    """The frame that gives a message up: to the queue's own dead-letter exchange, if it has one."""
    return spec.Basic.Reject(delivery_tag=number, requeue=False)
