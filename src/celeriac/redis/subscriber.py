"""One pub/sub connection that everybody on one event loop shares, and that comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, ClassVar

from celeriac.errors import BrokerUnavailable, again
from celeriac.redis.server import Server, transport_of
from celeriac.redis.trouble import unavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["Subscriber"]

logger = logging.getLogger("celeriac.redis")

Callback = Callable[[bytes], None]

#: Seconds between two attempts to connect: first, and at most.
_BACKOFF = (0.05, 2.0)

#: Seconds of silence after which the server is asked whether it is still there.
_QUIET = 2.0

#: How many channels are asked for in one command, and how many messages are handled before others on the loop have
#: their turn.
_AT_ONCE = 200

#: How often within the time that a reply may take it is looked whether one has come.
_LOOKS = 5


class Subscriber:
    """The channels that somebody on this loop listens to. It is connected only while somebody does."""

    _subscribers: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Server, Subscriber]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self._callbacks: dict[bytes, list[Callback]] = {}
        self._confirmed: set[bytes] = set()
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}
        self._gaps: list[Callable[[], None]] = []
        self._runner: asyncio.Task[None] | None = None
        self._asked: set[bytes] = set()
        self._owed: Counter[bytes] = Counter()  # confirmations that are due
        self._resuming: set[bytes] = set()  # not heard again yet since the connection was lost
        self._heard = False  # anything at all on this connection
        self._silence = 0.0  # seconds
        self._pinged = False  # and not been answered
        self._touched: set[bytes] = set()  # who listens to these has changed
        self._changed = asyncio.Event()

    @classmethod
    def shared(cls, server: Server) -> Subscriber:
        """The subscriber of the running loop to this server."""
        subscribers = cls._subscribers.setdefault(asyncio.get_running_loop(), {})
        return subscribers.setdefault(server, cls(server))

    async def listen(self, channel: str | bytes, callback: Callback) -> Callable[[], None]:
        """Have ``callback`` called on this loop with each message; returns when the server has confirmed.

        What is returned ends it. Raises BrokerUnavailable; while the connection is lost later on, messages are, and
        ``on_gap`` tells when it is back.
        """
        name = channel.encode() if isinstance(channel, str) else channel
        self._callbacks.setdefault(name, []).append(callback)
        try:
            await self._confirmation(name)
        except BaseException:
            self._leave(name, callback)
            raise
        return lambda: self._leave(name, callback)

    def on_gap(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called when the connection was lost and everything is heard again.

        What is returned ends it.
        """
        self._gaps.append(callback)

        def stop() -> None:
            if callback in self._gaps:
                self._gaps.remove(callback)

        return stop

    async def _confirmation(self, channel: bytes) -> None:
        if channel in self._confirmed:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, []).append(future)
        self._touch(channel)
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())
        await future

    def _leave(self, channel: bytes, callback: Callback) -> None:
        callbacks = self._callbacks.get(channel)
        if callbacks is None or callback not in callbacks:
            return
        callbacks.remove(callback)
        if not callbacks:
            del self._callbacks[channel]
            self._waiting.pop(channel, None)
            self._touch(channel)
            self._resumed(channel)

    def _touch(self, channel: bytes) -> None:
        self._touched.add(channel)
        self._changed.set()

    # -- the connection ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        delay, longest = _BACKOFF
        lost = False
        spared: set[asyncio.Future[None]] = set()
        while self._callbacks or self._waiting:
            early = self._unconfirmed()
            try:
                async with self._connected() as connection:
                    self._resuming = set(self._callbacks) if lost else set()
                    await self._serve(connection)
                    break
            except Exception as exc:  # noqa: BLE001 - told apart by unavailable
                error = unavailable(exc, self.server)
                if self._heard:
                    # It may have been dead for a while: who wants to listen since then gets one more attempt.
                    logger.warning("Messages cannot be heard, connecting again: %s", error)
                    spared = self._fail(error, spared)
                else:
                    # Whoever came when this attempt was under way, perhaps into a hole that has gone, gets the next.
                    self._fail(error, early)
            if self._heard:
                delay, lost, self._heard = _BACKOFF[0], True, False
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)
        self._runner = None
        self._changed = asyncio.Event()  # the old one would keep its loop alive
        if self._callbacks or self._waiting:  # somebody came while the connection was closed
            self._runner = asyncio.get_running_loop().create_task(self._run())

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[AbstractConnection]:
        connection = await self.server.connect()
        transport = transport_of(connection)
        self._touched = set(self._callbacks)
        try:
            yield connection
        finally:
            self._asked.clear()
            self._owed.clear()
            self._confirmed.clear()
            if transport is not None:
                transport.abort()  # closing would wait until a silent server has taken what was written
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)

    async def _serve(self, connection: AbstractConnection) -> None:
        """Until nobody listens any more. Raises when the connection is lost."""
        changed = self._changed
        changed.set()
        reader = asyncio.create_task(self._read(connection))
        reader.add_done_callback(lambda _: changed.set())
        try:
            while True:
                await changed.wait()
                changed.clear()
                if reader.done():
                    reader.result()
                await self._update(connection)
                if not self._asked:
                    return
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    async def _update(self, connection: AbstractConnection) -> None:
        """Tell the server which channels are wanted now, and which no more."""
        touched, self._touched = self._touched, set()
        new = [channel for channel in touched if channel in self._callbacks and channel not in self._asked]
        old = [channel for channel in touched if channel not in self._callbacks and channel in self._asked]
        if not (self._owed or self._pinged):
            # Only then: those who come later give a silent server no more time.
            self._silence = 0.0
        self._asked.update(new)
        self._owed.update(new)
        self._asked.difference_update(old)
        self._confirmed.difference_update(old)
        for command, channels in (("SUBSCRIBE", new), ("UNSUBSCRIBE", old)):
            for start in range(0, len(channels), _AT_ONCE):
                packed = connection.pack_command(command, *channels[start : start + _AT_ONCE])
                await connection.send_packed_command(packed, check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        patience = self.server.reply_timeout
        look = patience / _LOOKS
        self._silence, self._pinged = 0.0, False
        for count in itertools.count(1):
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)
            reply = await connection.read_response(timeout=look, disconnect_on_error=False)
            if reply is not None:
                self._silence, self._pinged, self._heard = 0.0, False, True
                self._handle(reply)
                continue
            self._silence += look
            # A ping is answered as soon as a greeting is, or the connection is no better than one that is not made.
            limit = min(patience, self.server.connect_timeout) if self._pinged else patience
            if self._silence >= limit * 0.99 and (self._pinged or self._owed):
                raise TimeoutError
            if self._silence >= _QUIET and not self._pinged:
                self._silence, self._pinged = 0.0, True
                await connection.send_packed_command(connection.pack_command("PING"), check_health=False)

    def _handle(self, reply: list[bytes]) -> None:
        if not isinstance(reply, list) or len(reply) < 3:
            return  # a pong
        kind, channel, message = reply[0], reply[1], reply[2]
        if kind == b"message":
            for callback in tuple(self._callbacks.get(channel, ())):
                try:
                    callback(message)
                except Exception:
                    logger.exception("A listener of %r failed", channel)
        elif kind == b"subscribe":
            self._confirm(channel)

    def _confirm(self, channel: bytes) -> None:
        self._owed[channel] -= 1
        if self._owed[channel] > 0:
            return  # of a wish that was given up, and uttered again since
        del self._owed[channel]
        if channel not in self._callbacks:
            return
        self._confirmed.add(channel)
        for future in self._waiting.pop(channel, ()):
            if not future.done():
                future.set_result(None)
        self._resumed(channel)

    # -- trouble -------------------------------------------------------------------------------------------------

    def _unconfirmed(self) -> set[asyncio.Future[None]]:
        return {future for each in self._waiting.values() for future in each if not future.done()}

    def _fail(
        self, error: BrokerUnavailable, among: Collection[asyncio.Future[None]]
    ) -> set[asyncio.Future[None]]:
        """Tell these of those who wait for a confirmation, and all of a refusal. Returns who still waits."""
        failed = {future for future in self._unconfirmed() if error.permanent or future in among}
        for future in failed:
            future.set_exception(again(error))
        left = {
            channel: [future for future in futures if not future.done()]
            for channel, futures in self._waiting.items()
        }
        self._waiting = {channel: futures for channel, futures in left.items() if futures}
        return self._unconfirmed()

    def _resumed(self, channel: bytes) -> None:
        """A channel is heard again after a gap, or nobody listens to it any more. With the last one, tell."""
        if channel not in self._resuming:
            return
        self._resuming.remove(channel)
        if self._resuming:
            return
        for callback in tuple(self._gaps):
            try:
                callback()
            except Exception:
                logger.exception("What was to be done after a gap failed")
