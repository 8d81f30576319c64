"""Connections of the driver together with their sockets: made in spite of holes in the network, and ended at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Any

from aiormq.connection import TCPTransportFactory, TLSTransportFactory

from celeriac.brokers.amqp_connection import TolerantConnection
from celeriac.brokers.amqp_errors import DRIVER_ERRORS

__all__ = ["Wire", "connect"]

#: Seconds for the courtesies at the end of a connection.
_CLOSE_TIMEOUT = 2.0

#: Seconds after which an attempt that is not greeted gets another one beside it.
_NEXT_ATTEMPT = 1.5


class _Sockets:
    """Makes the socket of one connection as the driver does, and keeps hold of it."""

    def __init__(self, *, tls: bool) -> None:
        self._factory: Any = TLSTransportFactory() if tls else TCPTransportFactory()
        self.transport: asyncio.WriteTransport | None = None
        self.received = 0

    async def create(self, *args: Any, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._factory.create(*args, **kwargs)
        self.transport = writer.transport
        feed = reader.feed_data

        def feed_and_count(data: bytes) -> None:
            self.received += len(data)
            feed(data)

        reader.feed_data = feed_and_count
        return reader, writer


class Wire:
    """A connection of the driver, and its socket."""

    def __init__(self, connection: TolerantConnection, sockets: _Sockets) -> None:
        self.connection = connection
        self._sockets = sockets

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes received, and bytes that wait to be sent: where one of them changes, the connection is alive."""
        transport = self._sockets.transport
        return self._sockets.received, 0 if transport is None else transport.get_write_buffer_size()

    async def ask(self) -> None:
        """Return when the server has answered something, or cannot any more."""
        with contextlib.suppress(*DRIVER_ERRORS):
            channel = await self.connection.channel(publisher_confirms=False)
            await channel.close()

    async def is_blocked(self) -> bool:
        """Whether the server has said that it reads nothing for now, for want of memory or disk."""
        ready = asyncio.ensure_future(self.connection.ready())
        await asyncio.wait((ready,), timeout=0)
        return not ready.done() and ready.cancel()

    def abort(self) -> None:
        """Have everybody who waits for an answer know that none will come: a silent peer takes no leave."""
        if self._sockets.transport is not None:
            self._sockets.transport.abort()

    async def close(self) -> None:
        """End the connection in good form, if the server is there for it. Who waits for an answer is told so."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                # By itself the driver would have them think that they were cancelled.
                await self.connection.close(ConnectionError("the connection was closed"))
        except (TimeoutError, *DRIVER_ERRORS):
            self.abort()


async def connect(url: str, context: ssl.SSLContext | None, patience: float) -> Wire:
    """A connection to the server at ``url`` that is made within ``patience`` seconds.

    An attempt may fall into a hole in the network, and must not hold up the others once the hole is closed; and a
    server under load may take its time. So each gets another one beside it, and the first that is greeted wins.

    Raises TimeoutError, and what the driver raises for the first attempt that fails.
    """
    until = asyncio.get_running_loop().time() + patience
    attempts: set[asyncio.Task[Wire]] = set()
    try:
        while (left := until - asyncio.get_running_loop().time()) > 0:
            attempts.add(asyncio.ensure_future(_attempt(url, context)))
            done, _ = await asyncio.wait(
                attempts, timeout=min(left, _NEXT_ATTEMPT), return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                first = min(done, key=lambda each: each.exception() is not None)
                attempts.discard(first)
                return first.result()
        raise TimeoutError
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_abandon)
            attempt.cancel()


async def _attempt(url: str, context: ssl.SSLContext | None) -> Wire:
    sockets = _Sockets(tls=url.startswith("amqps:"))
    connection = TolerantConnection(url, context=context, transport_factory=sockets)  # type: ignore[arg-type]
    wire = Wire(connection, sockets)
    try:
        await wire.connection.connect()
    except BaseException:
        wire.abort()
        raise
    return wire


def _abandon(attempt: asyncio.Task[Wire]) -> None:
    """End what was made for nobody."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().abort()


def _without_traceback(record: logging.LogRecord) -> bool:
    """The driver shows a traceback for each connection that ends; one sentence says as much.

    Of a connection that does not come about it shows what it raises as well, and we say that.
    """
    if record.msg == "error when creating transport: %r":
        return False
    if record.exc_info:
        error = record.exc_info[1]
        record.msg, record.exc_info = f"{record.getMessage()}: {error}", None
        record.args = ()
    return True


logging.getLogger("aiormq.connection").addFilter(_without_traceback)
