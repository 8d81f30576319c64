"""Who waits for which task in Redis: one pub/sub connection wakes them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from celeriac.errors import BrokerUnavailable
from celeriac.redis.link import Link
from celeriac.redis.subscriber import Subscriber
from celeriac.stores.base import Watch
from celeriac.stores.flags import Feed, Flag
from celeriac.stores.redis_errors import store_errors
from celeriac.stores.redis_rows import status_in

__all__ = ["Watchers"]

logger = logging.getLogger("celeriac.stores")

#: Seconds by which what is read again after a gap reaches back beyond its beginning.
_MARGIN = 60

#: Seconds between two attempts to read it.
_RETRY = 0.5

Stop = Callable[[], None]


class Watchers:
    """The waiters of one store. All methods belong to its loop."""

    def __init__(self, link: Link, prefix: str) -> None:
        self.subscriber = Subscriber.shared(link.server)
        self.prefix = prefix
        self.watchings: dict[str, list[_Watching]] = {}
        self._link = link
        self._feeds: list[Feed] = []
        self._forgotten: asyncio.Task[Stop] | None = None
        self._stop_gaps = self.subscriber.on_gap(self._on_gap)
        self._catching_up: asyncio.Task[None] | None = None
        self._heard_at = 0

    def flag(self, task_id: str, *, until_ready: bool) -> AbstractAsyncContextManager[Watch]:
        """A flag for what happens to the task from now on. Entering it raises StoreUnavailable."""
        return _Watching(self, task_id, until_ready)

    @asynccontextmanager
    async def feed(self) -> AsyncIterator[Feed]:
        """A feed of what is cancelled from now on. Raises StoreUnavailable."""
        feed = Feed()
        with store_errors():
            seconds, _ = await self._link.send("TIME")
            self._heard_at = max(self._heard_at, int(seconds))
            stop = await self.subscriber.listen(
                f"{self.prefix}celeriac:cancelled", lambda message: feed.add([message.decode()])
            )
        self._feeds.append(feed)
        try:
            yield feed
        finally:
            self._feeds.remove(feed)
            stop()

    async def close(self) -> None:
        """Wake everybody, so that they find out for themselves what has become of the store; and listen no more."""
        self._lift_all()
        self._stop_gaps()
        tasks = [task for task in (self._forgotten, self._catching_up) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if (
            self._forgotten is not None
            and not self._forgotten.cancelled()
            and not self._forgotten.exception()
        ):
            self._forgotten.result()()

    async def listen_to_forgotten(self) -> None:
        """Hear of deleted records: once for all tasks, and for as long as the store is open.

        So there is a connection already when the next one waits.
        """
        while self._forgotten is None or not self._forgotten.done():
            if self._forgotten is None:
                listening = self.subscriber.listen(f"{self.prefix}celeriac:forgotten", self._on_forgotten)
                self._forgotten = asyncio.get_running_loop().create_task(listening)
            await asyncio.wait([self._forgotten])
        if not self._forgotten.cancelled() and (error := self._forgotten.exception()) is not None:
            self._forgotten = None
            raise error

    def _on_forgotten(self, message: bytes) -> None:
        for watching in self.watchings.get(message.decode(), ()):
            watching.flag.lift()

    def _lift_all(self) -> None:
        for watchings in self.watchings.values():
            for watching in watchings:
                watching.flag.lift()

    def _on_gap(self) -> None:
        if self._catching_up is not None:
            self._catching_up.cancel()  # it may have read already what has changed since
        self._catching_up = asyncio.get_running_loop().create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Make up for what was not heard: wake everybody, and read what was cancelled.

        Not before the store answers, because whoever is woken asks it at once, and would get an error.
        """
        while True:
            try:
                cancelled = await self._cancelled_meanwhile()
                break
            except BrokerUnavailable as exc:
                logger.warning("What has happened meanwhile cannot be read: %s", exc)
                if exc.permanent:
                    cancelled = []
                    break
            await asyncio.sleep(_RETRY)
        for feed in self._feeds:
            feed.add(cancelled)
        self._lift_all()

    async def _cancelled_meanwhile(self) -> list[str]:
        now = self._link.send("TIME")
        if not self._feeds:
            await now
            return []
        key = f"{self.prefix}celeriac:cancelled"
        marked = self._link.send("ZRANGEBYSCORE", key, self._heard_at - _MARGIN, "+inf")
        seconds, _ = await now
        # Somebody may have written what is no text, which must not keep the others.
        cancelled = [task_id.decode(errors="replace") for task_id in await marked]
        self._heard_at = int(seconds)
        return cancelled


class _Watching(AbstractAsyncContextManager[Watch]):
    """One who waits for one task. There may be many thousands: everything that they share is elsewhere."""

    __slots__ = ("_stops", "_task_id", "_until_ready", "_watchers", "flag")

    def __init__(self, watchers: Watchers, task_id: str, until_ready: bool) -> None:
        self._watchers = watchers
        self._task_id = task_id
        self._until_ready = until_ready
        self._stops: list[Stop] = []
        self.flag = Flag(until_ready)

    async def __aenter__(self) -> Watch:
        self._watchers.watchings.setdefault(self._task_id, []).append(self)
        try:
            with store_errors():
                await self._listen()
        except BaseException:
            self._leave()
            raise
        return self.flag

    async def __aexit__(self, *_exc: object) -> None:
        self._leave()

    async def _listen(self) -> None:
        watchers = self._watchers
        result = f"{watchers.prefix}celery-task-meta-{self._task_id}"
        if self._until_ready:
            self._stops.append(await watchers.subscriber.listen(result, self._on_result))
        else:
            events = f"{watchers.prefix}celeriac:events:{self._task_id}"
            heard = await asyncio.gather(
                watchers.subscriber.listen(result, self._on_result),
                watchers.subscriber.listen(events, self._on_event),
                return_exceptions=True,
            )
            self._stops += [stop for stop in heard if not isinstance(stop, BaseException)]
            for error in heard:
                if isinstance(error, BaseException):
                    raise error
        await watchers.listen_to_forgotten()

    def _on_result(self, message: bytes) -> None:
        state = status_in(message)
        if state is None or self.flag.concerned("state", state):
            self.flag.lift()

    def _on_event(self, _message: bytes) -> None:
        self.flag.lift()

    def _leave(self) -> None:
        watchings = self._watchers.watchings[self._task_id]
        watchings.remove(self)
        if not watchings:
            del self._watchers.watchings[self._task_id]
        for stop in self._stops:
            stop()
