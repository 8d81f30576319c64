"""A TCP proxy that loses, delays and refuses what a network can lose, delay and refuse."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import Self, cast

from tests.services.ports import HOST, ReservedPort

__all__ = ["Proxy"]


class Proxy:
    """Stands in front of a server, on a port of its own, and is not noticed until a test wants it to be.

    An asynchronous context manager, which belongs to the test's event loop: a client that blocks the loop
    gets no answer.

    Args:
        host: The server's host.
        port: The server's port.
    """

    host = HOST

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        #: Seconds by which all bytes are late, in either direction.
        self.delay = 0.0
        #: How many connections were accepted so far.
        self.accepted = 0
        self.swallows_requests = False
        self.swallows_replies = False
        #: Set once something is held; see :meth:`hold`.
        self.holds = asyncio.Event()
        self._held_word: bytes | None = None
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def open_connections(self) -> int:
        """How many clients are connected at present."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset all connections. New ones are welcome."""
        for connection in list(self._connections):
            connection.abort()

    def cut_one(self, which: float) -> None:
        """Reset one connection, if there are any: 0 is the oldest, nearly 1 the youngest."""
        if connections := sorted(self._connections, key=lambda connection: connection.number):
            connections[int(which * len(connections))].abort()

    def blackhole(self, *, requests: bool = True, replies: bool = True) -> None:
        """Swallow without a word what is sent in these directions; new connections are still accepted.

        A connection that has lost something stays silent for good, as when a router has forgotten it.
        """
        self.swallows_requests, self.swallows_replies = requests, replies

    def hold(self, word: bytes) -> None:
        """Keep back each request with this word, and what follows it on its connection, until :meth:`let_go`."""
        self._held_word = word

    def let_go(self) -> None:
        """Pass on what was held, and hold no more."""
        self._held_word = None
        self.holds.clear()
        for connection in self._connections:
            connection.requests.let_go()

    def is_to_hold(self, data: bytes | None) -> bool:
        """Whether a connection waits from this request on."""
        held = self._held_word is not None and data is not None and self._held_word in data
        if held:
            self.holds.set()
        return held

    async def refuse(self) -> None:
        """Reset all connections, and refuse new ones as if nothing listened here."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.cut()
        if listener is not None:
            await listener.wait_closed()

    async def heal(self) -> None:
        """Be a good network again, to new connections and to those that have lost nothing."""
        self.blackhole(requests=False, replies=False)
        self.delay = 0.0
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                lambda: _Connection(self), self.host, self.port, backlog=1024
            )

    async def __aenter__(self) -> Self:
        await self.heal()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self._reserved.release()

    def opened(self, connection: _Connection) -> None:
        """Count a client in."""
        self.accepted += 1
        self._connections.add(connection)

    def closed(self, connection: _Connection) -> None:
        """Count a client out."""
        self._connections.discard(connection)


class _Connection(asyncio.Protocol):
    """The client's side of one connection, which opens the server's."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        #: How many there had been before.
        self.number = proxy.accepted
        self.requests = _Direction(proxy)
        self.replies = _Direction(proxy)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._proxy.opened(self)
        self.replies.lead_to(cast("asyncio.Transport", transport))
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(lambda: _ServerSide(self), *self._proxy.target)
        except OSError:
            self.reply(None)

    def data_received(self, data: bytes) -> None:
        self.request(data)

    def eof_received(self) -> None:
        self.request(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connecting.cancel()
        self._proxy.closed(self)
        self.requests.close(reset=exc is not None)

    def request(self, data: bytes | None) -> None:
        """Pass on what the client said; ``None`` is that it closed the connection."""
        if self._proxy.is_to_hold(data):
            self.requests.hold()
        self.requests.feed(data, swallow=self._proxy.swallows_requests)

    def reply(self, data: bytes | None) -> None:
        """Pass on what the server said; ``None`` is that it closed the connection."""
        self.replies.feed(data, swallow=self._proxy.swallows_replies)

    def abort(self) -> None:
        """Reset both sides."""
        self.requests.close(reset=True)
        self.replies.close(reset=True)


class _ServerSide(asyncio.Protocol):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.requests.lead_to(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._connection.reply(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.reply(None)


class _Direction:
    """What flows one way in one connection, late if it has to be, and in order."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._lost = False
        self._held = False
        self._closed = False

    def hold(self) -> None:
        """Pass on nothing for now."""
        self._held = True

    def let_go(self) -> None:
        """Pass on what was held."""
        self._held = False
        self._pass_on()

    def lead_to(self, transport: asyncio.Transport) -> None:
        """Give the end of this direction, and what has waited for it."""
        self._transport = transport
        if self._closed:
            transport.abort()
        else:
            self._pass_on()

    def feed(self, data: bytes | None, *, swallow: bool) -> None:
        """Take bytes, or ``None`` for the end of the connection."""
        self._lost = self._lost or swallow
        if self._lost:
            return
        self._waiting.append((self._loop.time() + self._proxy.delay, data))
        if len(self._waiting) == 1:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._transport is not None and not self._held:
            due, data = self._waiting[0]
            if due > self._loop.time():
                self._loop.call_at(due, self._pass_on)
                return
            self._waiting.popleft()
            if data is None:
                self._transport.close()
            else:
                self._transport.write(data)

    def close(self, *, reset: bool) -> None:
        """Close the end of this direction."""
        self._closed = True
        if self._transport is None:
            return
        if reset:
            connected: socket.socket = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # closed already
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()
