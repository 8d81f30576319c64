"""Calls of the event loop to a connection of kombu's: in a thread of its own, one after another, each under a deadline.

kombu's transports block, and some of their drivers block for ever. So the loop waits for a call no longer than its
deadline. A thread that is stuck in one is left behind, with its connection, and another one begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from celeriac.brokers.kombu_lane import Call, Lane
from celeriac.brokers.kombu_sources.base import Source
from celeriac.errors import BrokerUnavailable

__all__ = ["SourceThread"]

logger = logging.getLogger("celeriac.brokers.kombu")

S = TypeVar("S", bound=Source)
T = TypeVar("T")

#: Threads that may be stuck at a time; whoever asks beyond that waits for one of them, as long as the deadline allows.
_MOST_STUCK = 4


class SourceThread(Generic[S]):
    """Runs calls on a source, in a thread of their own, for the event loop that started it.

    Connects at the first call, and anew after a call has failed with anything but a CeleriacError or a TypeError.

    Args:
        make: Makes a source, not open yet; once for each thread that there has to be.
        name: Of the thread.
    """

    def __init__(self, make: Callable[[], S], *, name: str) -> None:
        self._make = make
        self._name = name
        self._lane: Lane[S] | None = None
        self._stuck: list[Lane[S]] = []

    def start(self) -> None:
        """Begin to take calls. Safe to call twice; after ``stop``, too."""
        if self._lane is None:
            self._lane = Lane(self._make(), self._name, asyncio.get_running_loop())

    @property
    def running(self) -> bool:
        """Whether it takes calls."""
        return self._lane is not None

    async def run(
        self,
        call: Callable[[S], T],
        *,
        deadline: float,
        again: bool = False,
        unwanted: Callable[[S, T], None] | None = None,
    ) -> T:
        """What ``call`` returns, once it has been called in the thread with the open source.

        Args:
            call: What to do with the source: ``lambda source: source.put(batch)``.
            deadline: Seconds to wait for it. One that has not begun by then does not happen.
            again: Call once more on a fresh connection when one that had been idle turns out to be gone.
            unwanted: Called in the thread with the result when nobody waits for it any more: gives back what was taken.

        Raises:
            BrokerUnavailable: The server is away, refuses, or has not answered within the deadline; in one sentence.
        """
        lane = self._lane
        if lane is None:
            raise BrokerUnavailable("The broker is not open.")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = Call(call, deadline, again, unwanted, future)
        lane.submit(waiting)
        try:
            async with asyncio.timeout(deadline):
                return await future
        except asyncio.CancelledError:
            self._leave_behind()
            raise
        except TimeoutError:
            self._leave_behind(waiting)
            raise BrokerUnavailable(
                f"The broker at {lane.source.place} does not answer: nothing came back within {deadline:g} seconds."
            ) from None

    def wake(self) -> None:
        """Have a ``take`` that waits, or is about to, return what it has."""
        if self._lane is not None:
            self._lane.nudge()

    def _leave_behind(self, call: Call | None = None) -> None:
        """Go on in a new thread if the present one is stuck, in this call or in one that is overdue."""
        lane = self._lane
        self._stuck = [each for each in self._stuck if each.is_alive]
        if lane is None or not lane.is_stuck_in(call) or len(self._stuck) >= _MOST_STUCK:
            return
        logger.warning(
            "A call to the broker at %s does not return; going on with a new connection.", lane.source.place
        )
        self._stuck.append(lane)
        self._lane = Lane(self._make(), self._name, lane.loop)
        for each in lane.abandon():
            self._lane.submit(each)

    async def stop(self, patience: float = 5.0, *, quiet: bool = False) -> None:
        """Finish what was asked for, close the source and end. Safe to call twice.

        A call that does not return within ``patience`` seconds is left alone: its thread ends with the process, which
        is worth no word in the log where it is ``quiet``.
        """
        lane, self._lane = self._lane, None
        if lane is None:
            return
        ended = lane.stop()
        try:
            async with asyncio.timeout(patience):
                await ended.wait()
        except TimeoutError:
            lane.abandon()
            logger.log(
                logging.DEBUG if quiet else logging.WARNING,
                "The connection to the broker at %s does not close; it is left to the end of the process.",
                lane.source.place,
            )
