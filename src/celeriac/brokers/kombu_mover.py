"""From the keeper into the transport: what was delayed, once it is due."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from celeriac.brokers.base import Broker, Delivery, PartlyPublished, Settlement
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

#: Seconds until it is given a message again that it has refused.
_REFUSED = 30.0


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
        self._is_late = False

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
                if moved:
                    self._is_late = False
                else:
                    await self._sleep(later)
            except BrokerUnavailable as exc:
                # Once for each outage: in a process without a worker nothing else would tell of it.
                level = logging.DEBUG if self._is_late else logging.WARNING
                self._is_late = True
                logger.log(level, "Delayed messages wait a little longer: %s", exc)
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
        ended: dict[str, Settlement] = {}
        try:
            await self._send(deliveries, ended)
        except BrokerUnavailable:
            left = [each for each in deliveries if each.tag not in ended]
            with contextlib.suppress(BrokerUnavailable):  # then they come back when their lease ends
                await self._keeper.settle([*ended.values(), *(_later(each, _RETRY) for each in left)])
            raise
        await self._keeper.settle([*ended.values()])
        return len(deliveries)

    async def _send(self, deliveries: Sequence[Delivery], ended: dict[str, Settlement]) -> None:
        """Put them into the transport, and say what becomes of each. What it refuses does not stop the others.

        Raises BrokerUnavailable when it takes nothing at the moment.
        """
        try:
            await self._put(self._messages(deliveries))
        except (BrokerUnavailable, TypeError) as exc:
            error: Exception = exc
            if isinstance(exc, PartlyPublished):
                error = exc.error
                for at in exc.published:
                    ended[deliveries[at].tag] = Settlement(deliveries[at].tag, Action.ACKNOWLEDGE)
                deliveries = [each for at, each in enumerate(deliveries) if at not in exc.published]
            if isinstance(error, BrokerUnavailable) and not error.permanent:
                raise error from exc
            if len(deliveries) > 1:
                for each in deliveries:
                    await self._send([each], ended)
                return
            for each in deliveries:
                ended[each.tag] = self._refused(each, error)
        else:
            ended.update({each.tag: Settlement(each.tag, Action.ACKNOWLEDGE) for each in deliveries})

    def _refused(self, delivery: Delivery, error: Exception) -> Settlement:
        queue = self._names.public(delivery.queue)
        if not isinstance(error, BrokerUnavailable):
            logger.error("A delayed message for %s is a dead letter now: %s", queue, error)
            return Settlement(delivery.tag, Action.DEAD_LETTER, reason=str(error))
        # It may be a matter of rights or settings, which somebody will mend.
        logger.warning("A delayed message for %s waits %g s more: %s", queue, _REFUSED, error)
        return _later(delivery, _REFUSED)

    def _messages(self, deliveries: Sequence[Delivery]) -> list[Outgoing]:
        publications = []
        for each in deliveries:
            queue = self._names.public(each.queue)
            publications.append(as_publication(Taken(queue, each.envelope, None), queue))
        return outgoing(publications)


def _later(delivery: Delivery, seconds: float) -> Settlement:
    return Settlement(delivery.tag, Action.REQUEUE, due=time.time() + seconds, counted=False)
