"""The queue of dead letters: looked at and replayed over a channel of its own, whose end puts everything back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiormq.abc import DeliveredMessage

from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained
from celeriac.brokers.amqp_link import ANSWER_TIMEOUT, Link
from celeriac.brokers.amqp_messages import dead_letter
from celeriac.brokers.amqp_publishing import Outgoing, Publishing
from celeriac.brokers.amqp_topology import DEAD, Topology
from celeriac.brokers.base import DeadLetter

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

__all__ = ["DeadLetters"]


class DeadLetters:
    """The dead letters of one virtual host."""

    def __init__(self, link: Link, topology: Topology, publishing: Publishing) -> None:
        self._link = link
        self._topology = topology
        self._publishing = publishing
        # One look at a time: what one has taken is not there for another.
        self._lock = asyncio.Lock()

    async def find(self, queue: str | None, limit: int) -> Sequence[DeadLetter]:
        """Those of one queue, or of all, newest first. Raises BrokerUnavailable."""
        newest: deque[DeadLetter] = deque(maxlen=limit)

        def keep(_: int, letter: DeadLetter) -> bool:
            if queue is None or letter.queue == queue:
                newest.append(letter)
            return True

        async with self._channel() as channel:
            await self._read(channel, keep)
        return list(reversed(newest))

    async def replay(
        self,
        ids: Sequence[str],
        copy: Callable[[DeadLetter], Awaitable[Outgoing]],
        publish: Callable[[Sequence[Outgoing], set[str]], Awaitable[None]],
    ) -> int:
        """Publish these again, and take them out when that is confirmed. Returns how many there were.

        Where it fails after some were confirmed, the error says that it is ``unconfirmed``.
        """
        wanted = set(ids)
        chosen: list[tuple[int, DeadLetter]] = []

        def keep(number: int, letter: DeadLetter) -> bool:
            if letter.id in wanted:
                wanted.discard(letter.id)
                chosen.append((number, letter))
            return bool(wanted)

        async with self._channel() as channel:
            if wanted:
                await self._read(channel, keep)
            confirmed: set[str] = set()
            try:
                await publish([await copy(letter) for _, letter in chosen], confirmed)
                for number, _ in chosen:
                    await channel.basic_ack(number)
            except DRIVER_ERRORS as exc:
                error = explained(exc, self._link.place.shown)
                error.unconfirmed = error.unconfirmed or bool(confirmed)
                raise error from exc
        return len(chosen)

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        async with self._lock:
            await self._topology.queue(DEAD)
            channel = await self._link.channel()
            try:
                with self._link.doubting():
                    yield channel
            except DRIVER_ERRORS as exc:
                raise explained(exc, self._link.place.shown) from exc
            finally:
                with contextlib.suppress(TimeoutError, *DRIVER_ERRORS):
                    await channel.close()

    async def _read(self, channel: AbstractChannel, keep: Callable[[int, DeadLetter], bool]) -> None:
        """Show ``keep`` each dead letter with its number, the oldest first, until it wants no more.

        They are pushed, as to ask for each would take a round trip each.
        """
        look = _Look(keep)
        consuming = await channel.basic_consume(DEAD, look.arrived, timeout=ANSWER_TIMEOUT)
        left: int | None = 1
        while left and look.wants_more:
            # The answer comes after what was pushed before, which may be very many.
            asked = asyncio.ensure_future(channel.queue_declare(DEAD, passive=True))
            await look.wait_for(asked)
            left = asked.result().message_count
        if consuming.consumer_tag is not None:
            await channel.basic_cancel(consuming.consumer_tag, timeout=ANSWER_TIMEOUT)


class _Look:
    """What has been seen of the dead letters."""

    def __init__(self, keep: Callable[[int, DeadLetter], bool]) -> None:
        self._keep = keep
        self._seen = 0
        self.wants_more = True

    async def arrived(self, delivered: DeliveredMessage) -> None:
        self._seen += 1
        if self.wants_more:
            with contextlib.suppress(ValueError, TypeError):  # somebody else's message
                self.wants_more = self._keep(delivered.delivery_tag or 0, dead_letter(delivered))

    async def wait_for(self, asked: asyncio.Future[Any]) -> None:
        """Wait for an answer, as long as dead letters come before it. Raises TimeoutError."""
        while not asked.done():
            seen = self._seen
            await asyncio.wait([asked], timeout=ANSWER_TIMEOUT)
            if not asked.done() and seen == self._seen:
                asked.cancel()
                raise TimeoutError
