"""Keeps the leases of what this worker holds, from a thread of its own.

A task that blocks the event loop must not lose its lease: nobody would be faster, and it would run twice. So the
keeper has its own loop and its own connection to the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Sequence

from celery.utils.log import get_logger

from celeriac.brokers.base import Broker
from celeriac.coalesce import Coalescer
from celeriac.errors import BrokerUnavailable
from celeriac.timing import elapsed
from celeriac.worker.ending import LeaseLost

__all__ = ["LeaseKeeper"]

logger = get_logger(__name__)

#: Seconds between two questions to a broker that does not answer: first, and at most.
_BACKOFF = (0.05, 2.0)

#: Seconds at most before leases that the broker did not renew are renewed: less than it spares them after an outage.
_AGAIN = 0.5


class LeaseKeeper:
    """Renews every held delivery each third of a lease, where the broker's deliveries have to be renewed.

    ``on_lost`` is called on the worker's loop with the tags whose lease had ended all the same, or that went back with
    a connection.
    """

    def __init__(self, broker: Broker, on_lost: Callable[[Collection[str]], None]) -> None:
        self._broker = broker
        self._renewer = broker.renewer()
        broker.on_lost(self._went_back)
        self._interval = broker.lease / 3
        self._on_lost = on_lost
        self._held: dict[str, float] = {}  # tag → when its lease began, as elapsed() has it, or sooner
        self._stopped = False
        self._questions: Coalescer[str] = Coalescer(self._ask)
        self._loop = asyncio.get_running_loop()
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="celeriac-leases", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._renewer is not None:
            self._thread.start()

    async def stop(self) -> None:
        """End; what is still held comes back when its lease ends."""
        self._stopped = True
        if self._renewer is None:
            return
        await self._loop.run_in_executor(None, self._ready.wait)
        if self._own_loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):
                self._own_loop.call_soon_threadsafe(self._stopping.set)
        await self._loop.run_in_executor(None, self._thread.join)

    def hold(self, tag: str, since: float) -> None:
        """A delivery was received; it was asked for when ``elapsed()`` was ``since``."""
        self._held[tag] = since

    def release(self, tag: str) -> None:
        """A delivery was settled."""
        self._held.pop(tag, None)

    def may_be_over(self, tag: str) -> bool:
        """Whether somebody else may have the delivery by now: nobody has renewed its lease for as long as it lasts.

        So it is in a process or on a machine that stood still. The thread that renews wakes up with the loop, and
        hears too late what was lost to keep it from starting; so may who hears of the end of a connection.
        """
        since = self._held.get(tag)
        return since is None or elapsed() - since >= self._broker.sure_for

    async def confirm(self, tag: str) -> None:
        """Begin the delivery's lease anew, however long the broker takes to answer.

        Raises LeaseLost if somebody else has it.
        """
        await self._questions.submit(tag)
        if tag not in self._held:
            raise LeaseLost

    async def _ask(self, tags: Sequence[str]) -> None:
        delay, longest = _BACKOFF
        void: Collection[str] = ()
        while not self._stopped:
            now = elapsed()
            try:
                void = await self._broker.renew(tags)
                break
            except BrokerUnavailable as exc:
                logger.error("Cannot ask for %d leases, trying again in %.2f s: %s", len(tags), delay, exc)
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)
        for tag in void:
            self._held.pop(tag, None)
        for tag in tags:
            if tag in self._held:
                self._held[tag] = now

    def _went_back(self, tags: Collection[str]) -> None:
        lost = {tag for tag in tags if self._held.pop(tag, None) is not None}
        if lost:
            self._on_lost(lost)

    def _main(self) -> None:
        if self._renewer is not None:
            asyncio.run(self._keep(self._renewer))

    async def _keep(self, broker: Broker) -> None:
        self._own_loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        opened = failed = False
        try:
            while not self._stopping.is_set():
                pause = self._interval / 4
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), min(pause, _AGAIN) if failed else pause)
                if not (due := self._due()):
                    failed = False
                    continue
                try:
                    if not opened:
                        await broker.open()
                        opened = True
                    await self._renew(broker, due)
                except BrokerUnavailable as exc:
                    self._report(exc, len(due), again=failed)
                    failed = True
                else:
                    failed = False
        finally:
            if opened:
                await broker.close()

    def _report(self, exc: BrokerUnavailable, count: int, *, again: bool) -> None:
        """Once per outage; what else the worker asks the broker for says how it goes on."""
        logger.log(
            logging.DEBUG if again else logging.ERROR,
            "The leases of %d deliveries were not renewed: %s",
            count,
            exc,
        )

    def _due(self) -> list[str]:
        before = elapsed() - self._interval
        # list(): one step of the interpreter, while the worker's loop adds and removes.
        return [tag for tag, since in list(self._held.items()) if since < before]

    async def _renew(self, broker: Broker, tags: list[str]) -> None:
        now = elapsed()
        void = set(await broker.renew(tags))
        for tag in tags:
            if tag in self._held:
                self._held[tag] = now
        # Settled meanwhile: void because it is done, not because it is lost.
        lost = {tag for tag in void if self._held.pop(tag, None) is not None}
        if lost:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_lost, lost)
