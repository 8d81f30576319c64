"""Long polls: requests that wait at the server for messages, one for each queue, each in a thread of its own.

Such a request cannot be cut short, so it must hold up nobody who publishes or settles. What it brings when nobody waits
any more stays here under its lease, until it is received or given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from celeriac.brokers.kombu_sources.base import Taken
from celeriac.brokers.kombu_sources.held import HeldSource
from celeriac.brokers.kombu_thread import SourceThread

__all__ = ["Arrival", "Polls", "arrivals"]

#: Messages that one request brings at most.
_MOST = 10

#: Seconds beyond its wait that a request may take.
_PATIENCE = 40.0


@dataclass(slots=True, eq=False)
class Arrival:
    """A message that the transport has handed over. ``since`` is when, at the earliest; ``until`` its lease's end at
    the earliest: both of the monotonic clock."""

    taken: Taken
    since: float
    until: float
    #: The transport knows nothing of it although its lease had not ended: it has lost it, and nobody else has it.
    gone: bool = False
    #: It is for others again, by our own will.
    ended: bool = False
    #: A copy or a dead letter has taken its place.
    replaced: bool = False


def arrivals(source: HeldSource, queues: Sequence[str], limit: int, wait: float) -> list[Arrival]:
    """Take. In the source's thread, so that the lease is counted from before the request."""
    start = time.monotonic()
    return [Arrival(each, start, start + source.lease) for each in source.take(queues, limit, wait)]


@dataclass(slots=True)
class _Poll:
    thread: SourceThread[HeldSource]
    asked: int = 0
    task: asyncio.Task[None] | None = None
    ready: deque[Arrival] = field(default_factory=deque)


class Polls:
    """The long polls of one broker. ``make`` makes a source; ``wait`` is how long one request waits, in seconds."""

    def __init__(self, make: Callable[[], HeldSource], wait: float, pause: float) -> None:
        self._make = make
        self._wait = wait
        self._pause = pause
        self._polls: dict[str, _Poll] = {}
        self._error: BaseException | None = None
        self._turn = 0
        #: Set when something has arrived, or a poll has ended.
        self.changed = asyncio.Event()

    def has(self, queues: Sequence[str]) -> bool:
        """Whether something of these queues is here."""
        return any(queue in self._polls and self._polls[queue].ready for queue in queues)

    def check(self) -> None:
        """Raise what a poll has failed with, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def pop(self, queues: Sequence[str], limit: int) -> list[Arrival]:
        """What is here, of each queue in turn."""
        buffers = [self._polls[queue].ready for queue in queues if queue in self._polls]
        popped: list[Arrival] = []
        while len(popped) < limit and any(buffers):
            for buffer in buffers:
                if buffer and len(popped) < limit:
                    popped.append(buffer.popleft())
        return popped

    def ensure(self, queues: Sequence[str], room: int) -> None:
        """Have as many messages waited for as there is room for, and no more, fairly from the queues."""
        self._turn += 1
        start = self._turn % max(1, len(queues))
        idle = [
            queue
            for queue in [*queues[start:], *queues[:start]]
            if queue not in self._polls or self._polls[queue].task is None
        ]
        room -= sum(each.asked + len(each.ready) for each in self._polls.values())
        for n, queue in enumerate(idle):
            share = min(_MOST, -(-room // (len(idle) - n)))
            if share <= 0:
                return
            room -= share
            self._begin(queue, share)

    def _begin(self, queue: str, count: int) -> None:
        poll = self._polls.get(queue)
        if poll is None:
            poll = self._polls[queue] = _Poll(SourceThread(self._make, name="celeriac-poll"))
        poll.thread.start()
        poll.asked = count
        poll.task = asyncio.get_running_loop().create_task(self._poll(queue, poll))

    async def _poll(self, queue: str, poll: _Poll) -> None:
        start = time.monotonic()
        count = poll.asked
        try:
            found = await poll.thread.run(
                lambda source: arrivals(source, [queue], count, self._wait),
                deadline=self._wait + _PATIENCE,
                again=True,
                unwanted=lambda source, found: source.give_back([each.taken for each in found]),
            )
            poll.ready += found
            if not found and (left := min(self._pause, start + self._pause - time.monotonic())) > 0:
                await asyncio.sleep(left)  # the server does not wait
        except Exception as exc:  # noqa: BLE001 - it belongs to who waits
            self._error = exc
        finally:
            poll.asked = 0
            poll.task = None
            self.changed.set()

    async def change(self, timeout: float) -> bool:
        """Wait until something has arrived or a poll has ended. Returns False after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(max(0.0, timeout) if timeout != math.inf else None):
                await self.changed.wait()
        except TimeoutError:
            return False
        return True

    async def leave(self, queues: Collection[str] = ()) -> list[Arrival]:
        """Ask no more but for these queues. Returns what had come and was not received.

        A request under way goes on by itself, and gives back what it brings as long as the process lives.
        """
        left: list[Arrival] = []
        for queue, poll in list(self._polls.items()):
            if queue in queues:
                continue
            if poll.task is not None:
                poll.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await poll.task
            left += poll.ready
            poll.ready.clear()
        return left

    async def close(self, patience: float) -> None:
        """End the threads; a request under way gets ``patience`` seconds."""
        polls, self._polls = self._polls, {}
        await asyncio.gather(*(poll.thread.stop(patience, quiet=True) for poll in polls.values()))
