"""A connection to RabbitMQ that is made when it is wanted, and made anew after it was lost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from aiormq.connection import Connection

from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained, refused
from celeriac.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection

__all__ = ["ANSWER_TIMEOUT", "Link", "Place", "place_of"]

#: Seconds that a server may take to greet, and to answer a question.
ANSWER_TIMEOUT = 10.0

#: Seconds for the courtesies at the end of a connection.
_CLOSE_TIMEOUT = 2.0

_PORTS = {"amqp": 5672, "amqps": 5671}


class Place:
    """Where a server is: the URL for the driver, how it may be shown, and what TLS needs."""

    def __init__(self, url: str, shown: str, tls: Mapping[str, Any] | None) -> None:
        self.url, self.shown, self._tls = url, shown, tls

    def context(self) -> ssl.SSLContext | None:
        """The TLS context of ``broker_use_ssl``, if that says more than that there is TLS. Reads files."""
        return None if self._tls is None else _context(self._tls)


def place_of(url: str, options: Mapping[str, Any], lease: float) -> Place:
    """Read a broker URL as kombu does. Raises ConfigurationError for one that names no server.

    ``options`` are Celery's ``broker_transport_options``; ``ssl`` among them is ``broker_use_ssl``, and ``heartbeat``
    are seconds. RabbitMQ gives up a silent connection after two of them, which is a ``lease`` if they are not given.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ConfigurationError(f"The port in the broker's URL is not a number: {parts.hostname}.") from None
    tls = options.get("ssl")
    scheme = "amqps" if tls or parts.scheme == "amqps" else "amqp"
    host, port = parts.hostname or "localhost", port or _PORTS[scheme]
    vhost = unquote(parts.path[1:]) or "/"
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    query = dict(parse_qsl(parts.query))
    query.setdefault("heartbeat", str(int(options.get("heartbeat") or max(2.0, min(60.0, lease / 2)))))
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    network = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = f"/{quote(vhost, safe='')}"
    full = urlunsplit((scheme, f"{login}@{network}", path, urlencode(query), ""))
    shown = urlunsplit((scheme, network, "" if vhost == "/" else path, "", ""))
    return Place(full, shown, tls if isinstance(tls, Mapping) else None)


def _context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The TLS context of ``broker_use_ssl``, under py-amqp's names, as Celery documents them."""
    context = ssl.create_default_context(cafile=options.get("ca_certs"), capath=options.get("ca_certs_path"))
    if options.get("certfile"):
        context.load_cert_chain(options["certfile"], options.get("keyfile"))
    if options.get("server_hostname") is None and options.get("check_hostname") is False:
        context.check_hostname = False
    if options.get("cert_reqs") in (ssl.CERT_NONE, "CERT_NONE", "none"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Link:
    """One connection. ``on_lost`` is called when it ends without having been closed here."""

    def __init__(self, place: Place, on_lost: Callable[[], None] | None = None) -> None:
        self.place = place
        self._on_lost = on_lost
        self._making = asyncio.Lock()
        self._connection: AbstractConnection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and self._connection.is_opened

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """A new channel. Raises BrokerUnavailable."""
        connection = await self._connect()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await connection.channel(publisher_confirms=confirms, frame_buffer_size=1000)
        except TimeoutError:
            await self.drop()
            raise BrokerUnavailable(f"RabbitMQ at {self.place.shown} does not answer.") from None
        except DRIVER_ERRORS as exc:
            raise explained(exc, self.place.shown) from exc

    async def _connect(self) -> AbstractConnection:
        async with self._making:
            if self._connection is not None and self._connection.is_opened:
                return self._connection
            try:
                context = await asyncio.to_thread(self.place.context)
            except (OSError, ValueError) as exc:
                raise refused(f"broker_use_ssl names certificates that cannot be used: {exc}.") from exc
            connection = Connection(self.place.url, context=context)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await connection.connect()
            except TimeoutError:
                raise BrokerUnavailable(f"RabbitMQ at {self.place.shown} does not answer.") from None
            except DRIVER_ERRORS as exc:
                raise explained(exc, self.place.shown) from exc
            self._connection = connection
            connection.closing.add_done_callback(lambda _: self._ended(connection))
            return connection

    def _ended(self, connection: AbstractConnection) -> None:
        if self._connection is connection:
            self._connection = None
            if self._on_lost is not None:
                self._on_lost()

    async def drop(self) -> None:
        """End the connection, as it does not work."""
        connection = self._connection
        if connection is not None:
            self._ended(connection)
            await _close(connection)

    async def close(self) -> None:
        """End the connection; nothing is lost by that."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)


async def _close(connection: AbstractConnection) -> None:
    with contextlib.suppress(TimeoutError, *DRIVER_ERRORS):
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await connection.close()
