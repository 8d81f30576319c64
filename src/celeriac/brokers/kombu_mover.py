"""From the keeper into the transport: what was delayed, once it is due."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from celeriac.brokers.base import Broker, Delivery, Settlement
from celeriac.brokers.kombu_names import Names, as_publication, outgoing
from celeriac.brokers.kombu_sources.base import Outgoing, Taken
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.settlement import Action

__all__ = ["Mover"]

logger = logging.getLogger("celeriac.brokers.kombu")

#: Messages that are moved at a time.
_BATCH = 100

#: Seconds after which queues that other processes have used first are looked for.
_LOOK = 5.0

#: Seconds until a transport that is away is tried again.
_RETRY = 1.0


class Mover:
    """Runs in every process that has the broker open, so that a delay needs no worker to end.

    Args:
        keeper: Where what is delayed waits.
        names: What its queues are called there.
        queues: Gives the queues of the transport that are known.
        put: Puts messages into the transport.
    """

    def __init__(
        self,
        keeper: Broker,
        names: Names,
        queues: Callable[[], Awaitable[Sequence[str]]],
        put: Callable[[Sequence[Outgoing]], Awaitable[None]],
    ) -> None:
        self._keeper = keeper
        self._names = names
        self._queues = queues
        self._put = put
        self._task: asyncio.Task[None] | None = None
        self._poked = asyncio.Event()
        self._stopping = False

    def start(self) -> None:
        """Begin to move."""
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def poke(self) -> None:
        """There is a queue that was not known."""
        self._poked.set()

    async def stop(self) -> None:
        """Move no more. What is under way is finished."""
        self._stopping = True
        self._poked.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while not self._stopping:
            self._poked.clear()
            try:
                later = [self._names.later(queue) for queue in await self._queues()]
                moved = await self.move(later) if later else 0
                if not moved:
                    await self._sleep(later)
            except BrokerUnavailable as exc:
                logger.debug("Delayed messages wait a little longer: %s", exc)
                await self._sleep([], _RETRY)
            except Exception:
                logger.exception("Moving delayed messages failed")
                await self._sleep([], _RETRY)

    async def _sleep(self, later: Sequence[str], seconds: float = _LOOK) -> None:
        """Until something is due in these queues, somebody pokes, or after some seconds."""
        poked = asyncio.ensure_future(self._poked.wait())
        due = asyncio.ensure_future(self._keeper.wait(later, seconds) if later else asyncio.sleep(seconds))
        try:
            await asyncio.wait((poked, due), return_when=asyncio.FIRST_COMPLETED)
            if due.done():
                due.result()
        finally:
            poked.cancel()
            due.cancel()

    async def move(self, private: Sequence[str], *, fresh: bool = False) -> int:
        """Put what is due in these queues of the keeper into the transport. Returns how many there were.

        ``fresh``: only what no worker has had yet; the others' counts would be lost on the way.
        """
        deliveries = (await self._keeper.receive(private, _BATCH)).deliveries
        if fresh:
            had = [each for each in deliveries if each.deliveries > 1]
            await self._keeper.settle([Settlement(each.tag, Action.REQUEUE, counted=False) for each in had])
            deliveries = [each for each in deliveries if each.deliveries <= 1]
        if not deliveries:
            return 0
        try:
            await self._put(self._messages(deliveries))
        except BrokerUnavailable:
            due = time.time() + _RETRY
            back = [Settlement(each.tag, Action.REQUEUE, due=due, counted=False) for each in deliveries]
            with contextlib.suppress(BrokerUnavailable):  # then they come back when their lease ends
                await self._keeper.settle(back)
            raise
        await self._keeper.settle([Settlement(each.tag, Action.ACKNOWLEDGE) for each in deliveries])
        return len(deliveries)

    def _messages(self, deliveries: Sequence[Delivery]) -> list[Outgoing]:
        publications = []
        for each in deliveries:
            queue = self._names.public(each.queue)
            publications.append(as_publication(Taken(queue, each.envelope, None), queue))
        return outgoing(publications)
