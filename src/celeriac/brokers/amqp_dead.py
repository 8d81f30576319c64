"""The queue of dead letters: looked at and replayed over a channel of its own, whose end puts everything back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained
from celeriac.brokers.amqp_link import ANSWER_TIMEOUT, Link
from celeriac.brokers.amqp_messages import dead_letter
from celeriac.brokers.amqp_publishing import Outgoing, Publishing
from celeriac.brokers.amqp_topology import DEAD, Topology
from celeriac.brokers.base import DeadLetter

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

__all__ = ["DeadLetters"]

#: Dead letters that one look reads, the oldest first.
_MOST = 10_000


class DeadLetters:
    """The dead letters of one virtual host."""

    def __init__(self, link: Link, topology: Topology, publishing: Publishing) -> None:
        self._link = link
        self._topology = topology
        self._publishing = publishing

    async def find(self, queue: str | None, limit: int) -> Sequence[DeadLetter]:
        """Those of one queue, or of all, newest first. Raises BrokerUnavailable."""
        async with self._channel() as channel:
            found = [letter for _, letter in await self._read(channel)]
        wanted = [letter for letter in reversed(found) if queue is None or letter.queue == queue]
        return wanted[:limit]

    async def replay(
        self,
        ids: Sequence[str],
        copy: Callable[[DeadLetter], Awaitable[Outgoing]],
        publish: Callable[[Sequence[Outgoing]], Awaitable[None]],
    ) -> int:
        """Publish these again, and take them out when that is confirmed. Returns how many there were."""
        wanted = set(ids)
        async with self._channel() as channel:
            chosen = [(number, letter) for number, letter in await self._read(channel) if letter.id in wanted]
            await publish([await copy(letter) for _, letter in chosen])
            for number, _ in chosen:
                await channel.basic_ack(number)
        return len(chosen)

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        await self._topology.queue(DEAD)
        channel = await self._link.channel()
        try:
            yield channel
        except DRIVER_ERRORS as exc:
            raise explained(exc, self._link.place.shown) from exc
        finally:
            with contextlib.suppress(TimeoutError, *DRIVER_ERRORS):
                await channel.close()

    async def _read(self, channel: AbstractChannel) -> list[tuple[int, DeadLetter]]:
        found: list[tuple[int, DeadLetter]] = []
        for _ in range(_MOST):
            delivered = await channel.basic_get(DEAD, timeout=ANSWER_TIMEOUT)
            if delivered.delivery_tag is None:
                break
            with contextlib.suppress(ValueError, TypeError):  # somebody else's message
                found.append((delivered.delivery_tag, dead_letter(delivered)))
        return found
