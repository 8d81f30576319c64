"""Takes a free slot, then a delivery: no more than can be started at once, so that idle workers get the rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from celery.utils.log import get_logger

from celeriac.brokers.base import Broker, Delivery
from celeriac.config import Settings
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.exchanges import Binding
from celeriac.timing import elapsed
from celeriac.worker.outage import Outage

__all__ = ["Fetcher", "Patience", "Slots"]

logger = get_logger(__name__)

#: Deliveries in one receive, at most.
_BATCH = 256

_BACKOFF = (0.05, 2.0)


class Slots:
    """How many deliveries the worker may work on: ``capacity``, which may change while it works."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.reserved = 0
        self._taken = 0
        self._concluding = 0
        self._freed = asyncio.Event()
        #: Set when the fetcher finds no slot that is free.
        self.filled = asyncio.Event()
        self._claims: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        return self.capacity - self._taken

    @property
    def used(self) -> int:
        """How many are taken, without those that the fetcher keeps for what the broker is about to answer."""
        return self._taken - self.reserved

    def take(self, count: int) -> None:
        """Take slots, free or not."""
        self._taken += count

    def release(self, count: int = 1) -> None:
        """Give slots back."""
        self._taken -= count
        self._share()

    def release_early(self) -> bool:
        """Give a slot back whose task has ended, and has yet to be concluded: but no more wait for the store than run.

        Returns whether it was given back; then ``concluded`` says when the rest is done, and ``release`` is not called.
        """
        if self._concluding >= self.capacity:
            return False
        self._concluding += 1
        self.release()
        return True

    def concluded(self) -> None:
        """The rest is done of what has given its slot back early."""
        self._concluding -= 1

    def resize(self, capacity: int) -> None:
        """Change the capacity; what is taken stays taken."""
        self.capacity = max(1, capacity)
        self._share()

    async def acquire(self) -> None:
        """Wait for a slot and take it; before the fetcher, which takes what is left."""
        if self.free > 0:
            self._taken += 1
            return
        claim: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._claims.append(claim)
        try:
            await claim
        except asyncio.CancelledError:
            if claim.done() and not claim.cancelled():
                self.release()
            raise

    def _share(self) -> None:
        while self._claims and self.free > 0:
            claim = self._claims.popleft()
            if not claim.done():
                self._taken += 1
                claim.set_result(None)
        self._freed.set()

    async def wait_free(self) -> None:
        """Return when at least one slot is free."""
        while self.free <= 0:
            self._freed.clear()
            await self._freed.wait()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker bears with a broker that is away, by Celery's ``broker_connection_*`` settings.

    ``on_startup`` is about the time before the first answer, ``later`` about the time after it; ``attempts`` bounds
    both, ``None`` does not.
    """

    on_startup: bool = True
    later: bool = True
    attempts: int | None = None

    def allows(self, failures: int, *, started: bool) -> bool:
        """Whether to try once more after so many failures in a row."""
        if not (self.later if started else self.on_startup):
            return False
        return self.attempts is None or failures <= self.attempts

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """The patience that the app's settings ask for."""
        return cls(
            settings.connection_retry_on_startup, settings.connection_retry, settings.connection_max_retries
        )


class Fetcher:
    """Receives deliveries of ``queues`` for free slots and hands them to ``start``, batch by batch, each with the
    ``elapsed()`` of when it was asked for.

    ``bindings`` are those of the queues to their exchanges. ``refused`` is called with a queue that was added later,
    and that the broker does not give, so that it does not stop the others.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Callable[[], Sequence[str]],
        slots: Slots,
        start: Callable[[Sequence[Delivery], float], Awaitable[None]],
        patience: Patience = Patience(),
        bindings: Callable[[], Sequence[Binding]] = tuple,
        refused: Callable[[str], None] = lambda _queue: None,
    ) -> None:
        self._broker = broker
        self._queues = queues
        self._bindings = bindings
        self._refused = refused
        self._bound: Sequence[str] = ()
        #: The queues that the broker has given last.
        self._given: Sequence[str] = ()
        self._slots = slots
        self._start = start
        self._patience = patience
        self._started = False
        self._stopping = False
        self._poked = asyncio.Event()
        self._batches: set[asyncio.Future[None]] = set()

    def stop(self) -> None:
        """Receive no more. ``run`` returns when what was received has been started."""
        self._stopping = True
        self._poked.set()

    def look_again(self) -> None:
        """The queues have changed."""
        self._poked.set()

    async def run(self) -> None:
        """Receive until stopped; through outages of the broker, too, as far as patience goes.

        Raises BrokerUnavailable when it is at its end, or when waiting would not help.
        """
        delay, longest = _BACKOFF
        failures, outage = 0, Outage()
        while not self._stopping:
            try:
                await self._receive()
            except BrokerUnavailable as exc:
                failures += 1
                if exc.permanent and self._drop_added(exc):
                    continue
                if exc.permanent or not self._patience.allows(failures, started=self._started):
                    raise
                outage.failed(exc, delay)
            except Exception as exc:
                # Remote control may have added a queue whose name no broker takes, as half of a surrogate pair is none.
                if isinstance(exc, (TypeError, ValueError)) and self._drop_added(exc):
                    continue
                logger.exception("Cannot receive, trying again in %.2f s", delay)
            else:
                delay, failures, self._started = _BACKOFF[0], 0, True
                outage.over()
                continue
            await self._unless_poked(asyncio.sleep(delay))
            delay = min(delay * 2, longest)
        with contextlib.suppress(BrokerUnavailable):  # then it goes back with the connection
            await self._broker.rest()
        if self._batches:
            await asyncio.wait(self._batches)

    async def _receive(self) -> None:
        if self._slots.free <= 0:
            self._slots.filled.set()
            await self._unless_poked(self._slots.wait_free())
        queues = self._queues()
        free = min(self._slots.free, _BATCH)
        if self._stopping or free <= 0:
            return
        if not queues:
            await self._broker.rest()
            await self._unless_poked(asyncio.sleep(1))
            return
        if queues != self._bound:
            # Who publishes to an exchange finds these queues by their bindings, as those of stock workers.
            try:
                await self._broker.bind(self._bindings())
            except BrokerUnavailable as exc:
                if not exc.permanent:
                    raise
                logger.warning(
                    "Who publishes to an exchange will not find the queues of this worker: %s", exc
                )
            self._bound = queues
        # Beforehand: while the broker answers, a task that has waited for its rate limit may want one.
        self._slots.take(free)
        self._slots.reserved = free
        deliveries: Sequence[Delivery] = ()
        asked_at = elapsed()  # no lease begins sooner, however long the answer is on its way
        try:
            # Never cancelled: what a cancelled receive has taken would be lost until its lease ends.
            deliveries = (await self._broker.receive(queues, free)).deliveries
            self._given = queues
        finally:
            self._slots.reserved = 0
            self._slots.release(free - len(deliveries))
        if deliveries:
            batch = asyncio.ensure_future(self._start(deliveries, asked_at))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)
            # Let the batch start, so that its slots are counted and the loop is not ours alone.
            await asyncio.sleep(0)
        else:
            await self._unless_poked(self._broker.wait(queues))

    def _drop_added(self, error: Exception) -> bool:
        """Go on without the queues that have been added since the broker gave any, if there are such."""
        added = [queue for queue in self._queues() if queue not in self._given] if self._given else []
        for queue in added:
            logger.error("The worker does not consume from %s: %s", queue, error)
            self._refused(queue)
        return bool(added)

    async def _unless_poked(self, waiting: Awaitable[object]) -> None:
        poke = asyncio.ensure_future(self._poked.wait())
        work = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait((poke, work), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            poke.cancel()
            work.cancel()
            if not self._stopping:
                self._poked.clear()
