"""Who waits for which task in Redis: one pub/sub connection wakes them all."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from celeriac.errors import BrokerUnavailable
from celeriac.redis.link import Link
from celeriac.redis.subscriber import Subscriber
from celeriac.stores.flags import Feed, Flag
from celeriac.stores.redis_rows import status_in

__all__ = ["Watchers"]

logger = logging.getLogger("celeriac.stores")

#: Seconds by which what is read again after a gap reaches back beyond its beginning.
_MARGIN = 60


class Watchers:
    """The waiters of one store. All methods belong to its loop. Raises BrokerUnavailable."""

    def __init__(self, link: Link, prefix: str) -> None:
        self._link = link
        self._subscriber = Subscriber.shared(link.server)
        self._prefix = prefix
        self._flags: defaultdict[str, list[Flag]] = defaultdict(list)
        self._feeds: list[Feed] = []
        self._forgotten: asyncio.Task[Callable[[], None]] | None = None
        self._stops: list[Callable[[], None]] = [self._subscriber.on_gap(self._on_gap)]
        self._catching_up: asyncio.Task[None] | None = None
        self._heard_at = 0

    @asynccontextmanager
    async def flag(self, task_id: str, *, until_ready: bool) -> AsyncIterator[Flag]:
        """A flag for what happens to the task from now on."""
        flag = Flag(until_ready)

        def see(message: bytes) -> None:
            state = status_in(message)
            if state is None or flag.concerned("state", state):
                flag.lift()

        listening = [
            self._listen_to_forgotten(),
            asyncio.ensure_future(self._subscriber.listen(f"{self._prefix}celery-task-meta-{task_id}", see)),
        ]
        if not until_ready:
            channel = f"{self._prefix}celeriac:events:{task_id}"
            listening.append(
                asyncio.ensure_future(self._subscriber.listen(channel, lambda _message: flag.lift()))
            )
        self._flags[task_id].append(flag)
        try:
            await _all(listening)
            yield flag
        finally:
            self._flags[task_id].remove(flag)
            if not self._flags[task_id]:
                del self._flags[task_id]
            _stop(listening[1:])

    @asynccontextmanager
    async def feed(self) -> AsyncIterator[Feed]:
        """A feed of what is cancelled from now on."""
        feed = Feed()
        listening = asyncio.ensure_future(
            self._subscriber.listen(
                f"{self._prefix}celeriac:cancelled", lambda message: feed.add([message.decode()])
            )
        )
        try:
            seconds, _ = await self._link.send("TIME")
            self._heard_at = max(self._heard_at, int(seconds))
            await _all([listening])
            self._feeds.append(feed)
            yield feed
        finally:
            if feed in self._feeds:
                self._feeds.remove(feed)
            _stop([listening])

    def close(self) -> None:
        """Wake everybody, so that they find out for themselves what has become of the store; and listen no more."""
        self._lift_all()
        for stop in self._stops:
            stop()
        if self._forgotten is not None:
            _stop([self._forgotten])
        if self._catching_up is not None:
            self._catching_up.cancel()

    def _listen_to_forgotten(self) -> asyncio.Task[Callable[[], None]]:
        # Once for all tasks, and for as long as the store is open: so there is a connection when the next one waits.
        if self._forgotten is None or (self._forgotten.done() and self._forgotten.exception()):
            self._forgotten = asyncio.ensure_future(
                self._subscriber.listen(f"{self._prefix}celeriac:forgotten", self._on_forgotten)
            )
        return self._forgotten

    def _on_forgotten(self, message: bytes) -> None:
        for flag in self._flags.get(message.decode(), ()):
            flag.lift()

    def _lift_all(self) -> None:
        for flags in self._flags.values():
            for flag in flags:
                flag.lift()

    def _on_gap(self) -> None:
        self._lift_all()
        if self._feeds and (self._catching_up is None or self._catching_up.done()):
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Read what was cancelled while the connection was lost."""
        try:
            (seconds, _), marked = await asyncio.gather(
                self._link.send("TIME"),
                self._link.send(
                    "ZRANGEBYSCORE", f"{self._prefix}celeriac:cancelled", self._heard_at - _MARGIN, "+inf"
                ),
            )
        except BrokerUnavailable as exc:
            logger.warning("What was cancelled meanwhile cannot be read: %s", exc)
            return
        self._heard_at = int(seconds)
        for feed in self._feeds:
            feed.add(task_id.decode() for task_id in marked)


async def _all(listening: list[asyncio.Task[Callable[[], None]]]) -> None:
    for outcome in await asyncio.gather(*map(asyncio.shield, listening), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _stop(listening: list[asyncio.Task[Callable[[], None]]]) -> None:
    for task in listening:
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None:
            task.result()()
