"""How a consumer sleeps until Redis has something for it.

A sentry blocks on the plain list of a queue with ``BLMOVE list list RIGHT RIGHT``, which moves nothing and returns as
soon as there is anything, whoever has put it there. Brokers of ours tell the other lists and the delays on a pub/sub
channel. What stock clients put into lists for other priorities is found by looking from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from celeriac.brokers.redis_keys import Layout
from celeriac.errors import BrokerUnavailable, again
from celeriac.redis.server import Server
from celeriac.redis.subscriber import Subscriber
from celeriac.redis.trouble import unavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["Waiting"]

logger = logging.getLogger("celeriac.redis")

#: Queues that have a sentry, each with a connection; the others are looked at.
_SENTRIES = 8

#: Seconds between two looks.
_LOOK = 0.25

#: Seconds after which the server ends a sentry's command, so that a dead connection is noticed.
_BLOCK = 5


class _Alarm:
    """Wakes one who waits."""

    __slots__ = ("error", "event", "ready")

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.ready = False
        self.error: BrokerUnavailable | None = None

    def ring(self) -> None:
        """There is something."""
        self.ready = True
        self.event.set()

    def look(self) -> None:
        """There may be something."""
        self.event.set()

    def fail(self, error: BrokerUnavailable) -> None:
        self.error = again(error)
        self.event.set()


class _Sentry:
    """Blocks on one list for everybody who waits for it, on a connection of its own."""

    def __init__(self, server: Server, key: str) -> None:
        self._server = server
        self._key = key
        self._alarms: set[_Alarm] = set()
        self._task: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._closing = False

    def arm(self, alarm: _Alarm) -> None:
        """Ring when the list has something; at once, if it has."""
        self._alarms.add(alarm)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def leave(self, alarm: _Alarm) -> None:
        """Ring no more."""
        self._alarms.discard(alarm)

    async def close(self) -> None:
        """Disconnect."""
        self._closing = True
        task = self._task
        if task is not None:
            task.cancel()
        # Before waiting: asyncio.wait_for, with which redis-py writes, may swallow a cancellation before Python 3.12.
        await self._disconnect()
        if task is not None:
            await asyncio.wait([task])
            await self._disconnect()  # what was being made meanwhile

    async def _watch(self) -> None:
        try:
            while self._alarms and not self._closing:
                if await self._block():
                    self._end(_Alarm.ring)
                    return
                if not self._alarms:
                    await self._disconnect()  # nobody has waited here for a while
            self._task = None
        except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
            error = unavailable(exc, self._server)
            self._end(lambda alarm: alarm.fail(error))

    def _end(self, tell: Callable[[_Alarm], None]) -> None:
        self._task = None
        alarms, self._alarms = self._alarms, set()
        for alarm in alarms:
            tell(alarm)

    async def _block(self) -> bool:
        """Whether there is something; False after a while."""
        used = self._connection is not None
        try:
            return await self._ask()
        except Exception as exc:
            await self._disconnect()
            # A connection that nobody used for a while may have been closed for that.
            if not used or self._closing or isinstance(exc, TimeoutError):
                raise
        return await self._ask()

    async def _ask(self) -> bool:
        if self._connection is None:
            self._connection = await self._server.connect()
        connection = self._connection
        await connection.send_packed_command(
            connection.pack_command("BLMOVE", self._key, self._key, "RIGHT", "RIGHT", _BLOCK),
            check_health=False,
        )
        async with asyncio.timeout(_BLOCK + self._server.reply_timeout):
            return await connection.read_response(timeout=math.inf, disconnect_on_error=False) is not None

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)


class Waiting:
    """All who wait on one broker.

    Args:
        server: Where.
        layout: Its keys.
        look: Says in how many seconds there may be something in these queues, as far as is known; 0 if there is.
    """

    def __init__(
        self, server: Server, layout: Layout, look: Callable[[Sequence[str]], Awaitable[float]]
    ) -> None:
        self._server = server
        self._layout = layout
        self._look = look
        self._sentries: dict[str, _Sentry] = {}
        self._alarms: dict[bytes, set[_Alarm]] = {}
        self._subscribing: asyncio.Task[None] | None = None
        self._stops: list[Callable[[], None]] = []

    async def wait(self, queues: Sequence[str], timeout: float | None) -> None:
        """Return when there may be something in these queues, or after ``timeout`` seconds. May be cancelled."""
        loop = asyncio.get_running_loop()
        deadline = math.inf if timeout is None else loop.time() + timeout
        alarm = _Alarm()
        with self._registered(queues, alarm) as sentries:
            self._subscribe()
            while True:
                alarm.event.clear()
                for sentry in sentries:
                    sentry.arm(alarm)
                # After the arming, and again when the subscription is confirmed, so that nothing is missed.
                pause = await self._look(queues)
                seconds = min(pause, _LOOK, deadline - loop.time())
                if seconds > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await alarm.event.wait()
                if alarm.error is not None:
                    raise alarm.error
                if alarm.ready or pause <= seconds or loop.time() >= deadline:
                    return

    async def close(self) -> None:
        """Leave no connection and no task behind."""
        if self._subscribing is not None:
            self._subscribing.cancel()
            await asyncio.wait([self._subscribing])
            self._subscribing = None
        stops, self._stops = self._stops, []
        for stop in stops:
            stop()
        sentries, self._sentries = self._sentries, {}
        for sentry in sentries.values():
            await sentry.close()

    @contextlib.contextmanager
    def _registered(self, queues: Sequence[str], alarm: _Alarm) -> Iterator[list[_Sentry]]:
        names = [queue.encode() for queue in queues]
        for name in names:
            self._alarms.setdefault(name, set()).add(alarm)
        sentries = [sentry for queue in queues if (sentry := self._sentry(queue)) is not None]
        try:
            yield sentries
        finally:
            for sentry in sentries:
                sentry.leave(alarm)
            for name in names:
                alarms = self._alarms.get(name, set())
                alarms.discard(alarm)
                if not alarms:
                    self._alarms.pop(name, None)

    def _sentry(self, queue: str) -> _Sentry | None:
        sentry = self._sentries.get(queue)
        if sentry is None:
            if len(self._sentries) >= _SENTRIES:
                return None
            sentry = self._sentries[queue] = _Sentry(self._server, self._layout.plain_list_of(queue))
        return sentry

    def _subscribe(self) -> None:
        """Begin to listen, unless that was done. Until it has succeeded, looking has to do."""
        if self._subscribing is None:
            self._subscribing = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        subscriber = Subscriber.shared(self._server)
        try:
            stop = await subscriber.listen(self._layout.wake, self._hear)
        except BrokerUnavailable as exc:
            if exc.permanent:
                logger.warning("Delays and priorities are noticed %g s late: %s", _LOOK, exc)
            else:
                self._subscribing = None
            return
        self._stops = [stop, subscriber.on_gap(self._hear_everything)]
        self._hear_everything()

    def _hear(self, queue: bytes) -> None:
        for alarm in self._alarms.get(queue, ()):
            alarm.look()

    def _hear_everything(self) -> None:
        for queue in self._alarms:
            self._hear(queue)
