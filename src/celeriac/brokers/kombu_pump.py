"""From a transport into the keeper: take, keep, finish. Killed at any instruction between, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from celeriac.brokers.base import Broker, Publication
from celeriac.brokers.kombu_names import Names, as_publication, raw
from celeriac.brokers.kombu_sources.base import Source, Taken
from celeriac.brokers.kombu_thread import SourceThread
from celeriac.errors import BrokerUnavailable

__all__ = ["Pump"]

logger = logging.getLogger("celeriac.brokers.kombu")

#: Seconds for one answer of the transport.
_PATIENCE = 10.0

#: Seconds that the thread waits for messages at a time: the longer, the later it is noticed that nothing answers.
_WAIT = 5.0

#: Seconds between attempts to keep what was taken; after the last it goes back.
_KEEPING = (0.05, 0.2, 0.5, 1.0)


class Pump:
    """Fills the keeper with as many messages as a worker asks for.

    Args:
        thread: Where the source is asked.
        keeper: Where they are kept.
        names: What their queues are called there.
    """

    def __init__(self, thread: SourceThread[Source], keeper: Broker, names: Names) -> None:
        self._thread = thread
        self._keeper = keeper
        self._names = names
        self._unfinished: list[Taken] = []
        self._finishing: asyncio.Task[None] | None = None
        self._keeping: set[asyncio.Task[int]] = set()
        self._wanted: Counter[str] = Counter()
        self._watch: asyncio.Task[None] | None = None
        self._failed: set[asyncio.Event] = set()
        self._failure: Exception | None = None
        #: How many to take while nobody has asked for a number.
        self._limit = 1
        #: How many were kept, and not received yet.
        self.surplus = 0

    async def look(self, queues: Sequence[str], limit: int) -> int:
        """Keep up to ``limit`` messages that are there now. Returns how many have been kept meanwhile.

        Raises BrokerUnavailable.
        """
        self._limit = max(1, limit)
        kept = await self._step(queues, limit, 0.0)
        # What a wait took just before is on its way, too.
        if self._keeping:
            await asyncio.wait(self._keeping)
            kept = max(kept, 1)
        return kept

    @contextlib.contextmanager
    def watching(self, queues: Sequence[str]) -> Iterator[asyncio.Event]:
        """Keep what comes while the context lasts. The event is set when the transport fails."""
        failed = asyncio.Event()
        self._failed.add(failed)
        self._wanted.update(queues)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(self._keep_watching())
        else:
            self._thread.wake()  # it waits for other queues
        try:
            yield failed
        finally:
            self._failed.discard(failed)
            self._wanted -= Counter(queues)
            if not self._wanted:
                self._thread.wake()

    def check(self) -> None:
        """Raise what nobody expected and waiting has failed with, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def stop(self) -> None:
        """Take no more. Returns when what was taken is kept and finished, or given back."""
        self._wanted.clear()
        self._thread.wake()
        if self._watch is not None:
            await asyncio.wait([self._watch])
        if self._keeping:
            await asyncio.wait(self._keeping)
        if self._finishing is not None:
            await asyncio.wait([self._finishing])

    async def told(self) -> None:
        """Return when the transport has been told of all that is kept: until then it counts that, too."""
        if self._finishing is not None:
            await asyncio.wait([self._finishing])

    async def _keep_watching(self) -> None:
        try:
            while self._wanted:
                await self._step(list(self._wanted), self._limit, _WAIT)
        except BrokerUnavailable as exc:
            logger.debug("No longer waiting for messages: %s", exc)
        except Exception as exc:
            self._failure = exc
            if not self._failed:
                logger.exception("Waiting for messages failed")
        for event in self._failed:
            event.set()

    async def _step(self, queues: Sequence[str], limit: int, wait: float) -> int:
        if self._finishing is not None:
            await asyncio.wait([self._finishing])
        elif self._unfinished:
            await self._finish()
        if wait and not self._wanted:
            return 0  # nobody waits any more, and nobody would wake the thread
        taken = await self._thread.run(
            lambda source: source.take(queues, limit, wait),
            deadline=wait + _PATIENCE,
            unwanted=lambda source, taken: source.give_back(taken),
        )
        if not taken:
            return 0
        # A task: whoever asked may be cancelled, but what was taken must get somewhere.
        keeping = asyncio.get_running_loop().create_task(self._keep(taken))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        return await asyncio.shield(keeping)

    async def _keep(self, taken: list[Taken]) -> int:
        try:
            publications = [as_publication(each, self._names.ready(each.queue)) for each in taken]
            await self._publish(taken, publications)
        except Exception:
            await self._give_back(taken)
            raise
        # What came before its time is nobody's yet.
        self.surplus += sum(each.due is None for each in publications)
        self._unfinished += taken
        if self._finishing is None:
            self._finishing = asyncio.get_running_loop().create_task(self._finish())
            self._finishing.add_done_callback(self._forget_finishing)
        return len(taken)

    def _forget_finishing(self, _done: object) -> None:
        self._finishing = None

    async def _publish(self, taken: Sequence[Taken], publications: Sequence[Publication]) -> None:
        for pause in (*_KEEPING, None):
            try:
                await self._publish_once(taken, publications)
            except BrokerUnavailable as exc:
                if pause is None or exc.permanent:
                    raise
                await asyncio.sleep(pause)
            else:
                return

    async def _publish_once(self, taken: Sequence[Taken], publications: Sequence[Publication]) -> None:
        try:
            await self._keeper.publish(publications)
        except BrokerUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with one, it must not stop the others
            logger.warning("One of %d messages cannot be kept as it is: %s", len(taken), exc)
            for each, publication in zip(taken, publications, strict=True):
                try:
                    await self._keeper.publish([publication])
                except BrokerUnavailable:
                    raise
                except Exception:  # noqa: BLE001 - the worker will say what it is
                    await self._keeper.publish([raw(each, publication.queue)])

    async def _give_back(self, taken: Sequence[Taken]) -> None:
        try:
            await self._thread.run(lambda source: source.give_back(taken), deadline=_PATIENCE)
        except BrokerUnavailable as exc:
            logger.warning("%d messages come back later: %s", len(taken), exc)

    async def _finish(self) -> None:
        """Tell the transport what is kept. What it does not hear now it is told before the next taking."""
        while taken := self._unfinished:
            self._unfinished = []
            try:
                await self._thread.run(
                    lambda source, taken=taken: source.finish(taken),  # type: ignore[misc]
                    deadline=_PATIENCE,
                    again=True,
                )
            except Exception as exc:  # noqa: BLE001 - a source that is at fault must not have it told never
                self._unfinished += taken
                level = logging.DEBUG if isinstance(exc, BrokerUnavailable) else logging.ERROR
                logger.log(level, "The transport was not told of %d kept messages: %s", len(taken), exc)
                return
