"""One pub/sub connection that everybody on one event loop shares, and that comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, ClassVar

from celeriac.errors import BrokerUnavailable
from celeriac.redis.server import Server
from celeriac.redis.trouble import again, unavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["Subscriber"]

logger = logging.getLogger("celeriac.redis")

Callback = Callable[[bytes], None]

#: Seconds between two attempts to connect: first, and at most.
_BACKOFF = (0.05, 2.0)

#: Seconds of silence after which the server is asked whether it is still there.
_QUIET = 10.0


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
        """Have ``callback`` called when the connection was lost and is back. What is returned ends it."""
        self._gaps.append(callback)
        return lambda: self._gaps.remove(callback)

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

    def _touch(self, channel: bytes) -> None:
        self._touched.add(channel)
        self._changed.set()

    # -- the connection ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        delay, longest = _BACKOFF
        connected_before = False
        while self._callbacks or self._waiting:
            try:
                async with self._connected() as connection:
                    delay = _BACKOFF[0]
                    if connected_before:
                        self._tell_gap()
                    connected_before = True
                    await self._serve(connection)
                    break
            except Exception as exc:  # noqa: BLE001 - told apart by unavailable
                error = unavailable(exc, self.server)
                if not self._fail(error) and connected_before:
                    logger.warning("Messages cannot be heard, connecting again: %s", error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)
        self._runner = None
        if self._callbacks or self._waiting:  # somebody came while the connection was closed
            self._runner = asyncio.get_running_loop().create_task(self._run())

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[AbstractConnection]:
        connection = await self.server.connect()
        self._touched = set(self._callbacks)
        try:
            yield connection
        finally:
            self._asked.clear()
            self._confirmed.clear()
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)

    async def _serve(self, connection: AbstractConnection) -> None:
        """Until nobody listens any more. Raises when the connection is lost."""
        self._changed.set()
        reader = asyncio.create_task(self._read(connection))
        try:
            while True:
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((changed, reader), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if reader.done():
                    reader.result()
                self._changed.clear()
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
        self._asked.update(new)
        self._asked.difference_update(old)
        self._confirmed.difference_update(old)
        for command, channels in (("SUBSCRIBE", new), ("UNSUBSCRIBE", old)):
            if channels:
                packed = connection.pack_command(command, *channels)
                await connection.send_packed_command(packed, check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        silent = False
        while True:
            reply = await connection.read_response(timeout=_QUIET, disconnect_on_error=False)
            if reply is not None:
                silent = False
                self._handle(reply)
            elif silent:
                raise TimeoutError
            else:
                silent = True
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
        elif kind == b"subscribe" and channel in self._callbacks:
            self._confirmed.add(channel)
            for future in self._waiting.pop(channel, ()):
                if not future.done():
                    future.set_result(None)

    # -- trouble -------------------------------------------------------------------------------------------------

    def _fail(self, error: BrokerUnavailable) -> bool:
        """Tell those who wait for a confirmation. Whether there was anybody."""
        waiting, self._waiting = self._waiting, {}
        futures = [future for each in waiting.values() for future in each if not future.done()]
        for future in futures:
            future.set_exception(again(error))
        return bool(futures)

    def _tell_gap(self) -> None:
        for callback in tuple(self._gaps):
            callback()
