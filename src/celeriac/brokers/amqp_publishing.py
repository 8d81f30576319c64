"""Publishing with confirms: a batch goes out in a few writes, and then all its confirms are waited for together."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from aiormq import exceptions as amqp
from aiormq.abc import ChannelFrame
from pamqp import commands as spec

from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained, unconfirmed
from celeriac.brokers.amqp_link import Link
from celeriac.brokers.amqp_messages import frames
from celeriac.errors import BrokerUnavailable

if TYPE_CHECKING:
    from aiormq.channel import Channel

__all__ = ["Outgoing", "Publishing", "Unroutable"]

#: Seconds before what the server did not take is sent again. A quorum queue takes nothing while it is being made or has
#: no leader; one that is full takes nothing either, and then somebody has to hear of it.
_PAUSES = (0.05, 0.2, 0.5)

#: Messages in one write.
_AT_ONCE = 64


class Outgoing(NamedTuple):
    """A message with its exchange and routing key, as AMQP has them."""

    exchange: str
    routing_key: str
    properties: spec.Basic.Properties
    body: bytes
    #: Whether it matters that no queue gets it.
    mandatory: bool = True
    #: Whether it may be lost where its queue is full.
    droppable: bool = False
    #: Has there be what it is published to.
    declare: Callable[[], Awaitable[None]] | None = None


class Unroutable(Exception):
    """No queue was there for some of a batch."""

    def __init__(self, outgoing: Sequence[Outgoing]) -> None:
        super().__init__(f"{len(outgoing)} messages reached no queue")
        self.outgoing = outgoing


class Publishing:
    """The channel of one link that publishes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = asyncio.Lock()
        self._channel: Channel | None = None
        self._prefix = secrets.token_hex(6)
        self._numbers = count()

    def new_id(self) -> str:
        """A message id that nobody else has: by it the server names what it returns."""
        return f"{self._prefix}-{next(self._numbers)}"

    async def send(self, batch: Sequence[Outgoing], confirmed: set[str] | None = None) -> None:
        """Publish, and return when the server has confirmed each.

        The ids of those that it has are added to ``confirmed``, also where the others fail.

        Raises BrokerUnavailable, :class:`Unroutable`, and TypeError, before anything is sent, for what AMQP cannot
        express.
        """
        returned: list[Outgoing] = []
        confirmed = set() if confirmed is None else confirmed
        refused = await self._attempt(batch, returned, confirmed)
        for pause in _PAUSES:
            if not refused:
                break
            await self._pause(pause)
            refused = await self._attempt(refused, returned, confirmed)
        if refused:
            raise BrokerUnavailable(
                f"RabbitMQ at {self._link.place.shown} has not taken a message: its queue is full (x-max-length), "
                "or the members of its quorum are not all there."
            )
        if returned:
            raise Unroutable(returned)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _attempt(
        self, batch: Sequence[Outgoing], returned: list[Outgoing], confirmed: set[str]
    ) -> list[Outgoing]:
        """Send once. Returns what the server did not take, and adds to ``returned`` what reached no queue."""
        channel: Channel | None = None
        confirms: list[asyncio.Future[Any]] = []
        try:
            with self._link.doubting():
                async with self._lock:
                    channel = await self._open()
                    # What a server that is short of memory does not read would wait here, without a bound.
                    await self._link.writable()
                    # All of them before the first is sent.
                    for payload, size in list(self._chunks(channel, batch)):
                        chunk = batch[len(confirms) : len(confirms) + size]
                        confirms += await self._write(channel, payload, chunk)
                await asyncio.wait(confirms)
        except DRIVER_ERRORS as exc:
            told = unconfirmed if confirms else explained
            raise told(exc, self._link.place.shown) from exc
        finally:
            for each, confirm in zip(batch, confirms, strict=False):
                if confirm.done() and not confirm.cancelled() and confirm.exception() is None:
                    confirmed.add(each.properties.message_id or "")
            if channel is not None:
                for each in batch:
                    channel.message_id_delivery_tag.pop(each.properties.message_id or "", None)
        return self._judge(confirms, batch, returned, confirmed)

    def _chunks(self, channel: Channel, batch: Sequence[Outgoing]) -> Iterator[tuple[bytes, int]]:
        number, largest = channel.number, channel.max_content_size
        for start in range(0, len(batch), _AT_ONCE):
            chunk = batch[start : start + _AT_ONCE]
            yield (
                b"".join(
                    frames(number, each.exchange, each.routing_key, each.properties, each.body, largest)
                    for each in chunk
                ),
                len(chunk),
            )

    async def _write(
        self, channel: Channel, payload: bytes, chunk: Sequence[Outgoing]
    ) -> list[asyncio.Future[Any]]:
        """Hand a chunk to the connection, and expect its confirms.

        The server counts what it gets, so what was not handed over must not be counted here.
        """
        first = channel.delivery_tag + 1
        made = []
        for tag, each in enumerate(chunk, first):
            confirm = channel.create_future()
            channel.confirmations[tag] = confirm
            channel.message_id_delivery_tag[each.properties.message_id or ""] = tag
            made.append(confirm)
        channel.delivery_tag += len(chunk)
        try:
            await channel.write_queue.put(ChannelFrame(payload=payload, should_close=False))
        except BaseException:
            channel.delivery_tag -= len(chunk)
            for tag, each in enumerate(chunk, first):
                channel.confirmations.pop(tag, None)
                channel.message_id_delivery_tag.pop(each.properties.message_id or "", None)
            raise
        return made

    def _judge(
        self,
        confirms: Sequence[asyncio.Future[Any]],
        batch: Sequence[Outgoing],
        returned: list[Outgoing],
        confirmed: set[str],
    ) -> list[Outgoing]:
        refused = []
        for each, confirm in zip(batch, confirms, strict=True):
            exc = ConnectionError("the connection was closed") if confirm.cancelled() else confirm.exception()
            if isinstance(exc, amqp.PublishError):
                if each.mandatory:
                    returned.append(each)
                else:
                    confirmed.add(each.properties.message_id or "")
            elif isinstance(exc, amqp.DeliveryError):
                if not each.droppable:
                    refused.append(each)
            elif exc is not None:
                raise unconfirmed(exc, self._link.place.shown) from exc
        return refused

    async def _open(self) -> Channel:
        channel = self._channel
        if channel is None or not self._link.carries(channel):
            channel = self._channel = await self._link.channel(confirms=True)  # type: ignore[assignment]
        return channel  # type: ignore[return-value]
