"""A connection to RabbitMQ that is made when it is wanted, and made anew after it was lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from celeriac.brokers.amqp_errors import DRIVER_ERRORS, explained, refused
from celeriac.brokers.amqp_socket import Wire, connect
from celeriac.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

__all__ = ["ANSWER_TIMEOUT", "Link", "Place", "place_of", "places_of"]

logger = logging.getLogger("celeriac.brokers.amqp")

#: Seconds that a server may take to greet, and to answer a question.
ANSWER_TIMEOUT = 10.0

#: Seconds without an answer after which it is doubted that the connection still leads anywhere.
_DOUBT = 1.0

#: Seconds between two looks at a connection in doubt, and those that its answer may come behind somebody else's.
_LOOK, _GRACE = 0.5, 1.0

_PORTS = {"amqp": 5672, "amqps": 5671}


class Place:
    """Where a server is: the URL for the driver, how it may be shown, what TLS needs, how long to wait for it.

    ``silence``: seconds after which it gives up a connection that says nothing; zero if it never does.
    """

    def __init__(
        self, url: str, shown: str, tls: Mapping[str, Any] | None, patience: float, silence: float
    ) -> None:
        self.url, self.shown, self._tls = url, shown, tls
        #: Seconds that it may take to connect.
        self.patience = patience
        self.silence = silence

    @property
    def certificates(self) -> str:
        """The files of ``broker_use_ssl``, which the errors of those that read them do not name."""
        names = ("ca_certs", "ca_certs_path", "certfile", "keyfile")
        return ", ".join(f"{name} {self._tls[name]!r}" for name in names if self._tls and self._tls.get(name))

    def context(self) -> ssl.SSLContext | None:
        """The TLS context of ``broker_use_ssl``, if that says more than that there is TLS. Reads files."""
        return None if self._tls is None else _context(self._tls)


def places_of(url: str, options: Mapping[str, Any], lease: float) -> list[Place]:
    """The servers of a failover URL, ``amqp://a;amqp://b``, in the order in which they are to be tried.

    ``failover_strategy`` among the options is ``broker_failover_strategy``. Raises as :func:`place_of`.
    """
    places = [place_of(each, options, lease) for each in url.split(";") if each]
    if options.get("failover_strategy") == "shuffle":
        random.shuffle(places)
    return places


def place_of(url: str, options: Mapping[str, Any], lease: float) -> Place:
    """Read a broker URL as kombu does. Raises ConfigurationError for one that names no server.

    ``options`` are Celery's ``broker_transport_options``; ``ssl`` among them is ``broker_use_ssl``, ``login_method`` is
    ``broker_login_method``, ``heartbeat`` and ``connect_timeout`` are seconds. RabbitMQ gives up a silent connection
    after two heartbeats, which is a ``lease`` if they are not given.
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
    if method := options.get("login_method"):
        if method not in ("PLAIN", "EXTERNAL"):
            raise ConfigurationError(
                f"broker_login_method is {method!r}, and celeriac knows PLAIN and EXTERNAL: remove it."
            )
        query.setdefault("auth", method.lower())
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    network = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = f"/{quote(vhost, safe='')}"
    full = urlunsplit((scheme, f"{login}@{network}", path, urlencode(query), ""))
    shown = urlunsplit((scheme, network, "" if vhost == "/" else path, "", ""))
    patience = float(options.get("connect_timeout") or ANSWER_TIMEOUT)
    silence = 2.0 * int(query["heartbeat"]) if query["heartbeat"].isdecimal() else 0.0
    return Place(full, shown, tls if isinstance(tls, Mapping) else None, patience, silence)


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
    """One connection, to the first of some servers that is there.

    ``on_lost`` is called when it ends without having been closed here.

    A connection may die without a word: the network has forgotten it, the peer is gone. A server may also take its
    time, and to give up what it answers later would have its deliveries start twice. Whoever misses an answer raises a
    doubt, and only if the server answers a new connection meanwhile, and still not this one, this one is given up.
    """

    def __init__(self, places: Sequence[Place], on_lost: Callable[[], None] | None = None) -> None:
        self._places = deque(places)
        self._on_lost = on_lost
        self._making = asyncio.Lock()
        self._wire: Wire | None = None
        self._examination: asyncio.Task[None] | None = None

    @property
    def place(self) -> Place:
        """The server that it is connected to, or will try first."""
        return self._places[0]

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._wire is not None and self._wire.connection.is_opened

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """A new channel. Raises BrokerUnavailable."""
        wire = await self._connect()
        try:
            with self.doubting():
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    return await wire.connection.channel(publisher_confirms=confirms, frame_buffer_size=1000)
        except TimeoutError:
            await self.drop()
            raise BrokerUnavailable(f"RabbitMQ at {self.place.shown} does not answer.") from None
        except DRIVER_ERRORS as exc:
            raise explained(exc, self.place.shown) from exc

    async def ask(self) -> None:
        """Return when the server has answered; what it has said before is known then. Raises BrokerUnavailable."""
        channel = await self.channel()
        with contextlib.suppress(*DRIVER_ERRORS):
            await channel.close()

    async def _connect(self) -> Wire:
        async with self._making:
            if self._wire is not None and self._wire.connection.is_opened:
                return self._wire
            others = len(self._places) - 1
            while True:
                try:
                    wire = self._wire = await _connect_to(self.place)
                    break
                except BaseException as exc:
                    # Whoever gives up waiting, too: the next attempt begins with the next server.
                    self._places.rotate(-1)
                    if not others or not isinstance(exc, BrokerUnavailable):
                        raise
                    others -= 1
            wire.connection.closing.add_done_callback(lambda _: self._ended(wire))
            return wire

    def carries(self, channel: AbstractChannel) -> bool:
        """Whether a channel is open, and of the connection that there is now."""
        return (
            not channel.is_closed and self._wire is not None and channel.connection is self._wire.connection
        )

    async def writable(self) -> None:
        """Return when the server reads what is published. Raises BrokerUnavailable when the connection ends before."""
        if self._wire is None:
            return
        connection = self._wire.connection
        ready, ended = asyncio.ensure_future(connection.ready()), connection.closing
        try:
            await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise BrokerUnavailable(f"RabbitMQ at {self.place.shown} has closed the connection.")
        finally:
            ready.cancel()
            ended.cancel()

    def _ended(self, wire: Wire) -> None:
        if self._wire is wire:
            self._wire = None
            if self._on_lost is not None:
                self._on_lost()

    async def drop(self) -> None:
        """End the connection, as it does not work."""
        wire = self._wire
        if wire is not None:
            self._ended(wire)
            wire.abort()
            await wire.close()

    async def close(self) -> None:
        """End the connection; nothing is lost by that."""
        if self._examination is not None:
            self._examination.cancel()
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    # -- doubts ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def doubting(self) -> Iterator[None]:
        """What is awaited inside is to come soon. Where it does not, or is not waited for, it is found out why.

        Raises ConnectionResetError where the driver says that its connection was cancelled, as it does for one whose
        heartbeat has stopped: whoever waits would take that for a cancellation of their own.
        """
        timer = asyncio.get_running_loop().call_later(_DOUBT, self._doubt)
        try:
            yield
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if waiting is not None and not waiting.cancelling():
                raise ConnectionResetError("the connection was lost") from None
            self._doubt()  # somebody's deadline may be shorter than ours
            raise
        finally:
            timer.cancel()

    def _doubt(self) -> None:
        if self._wire is not None and (self._examination is None or self._examination.done()):
            self._examination = asyncio.get_running_loop().create_task(self._examine(self._wire))

    async def _examine(self, wire: Wire) -> None:
        """Give a connection up if the server answers others, and not us."""
        seen, answer = wire.progress, asyncio.ensure_future(wire.ask())
        others = asyncio.ensure_future(self._answers_others())
        try:
            while self._wire is wire and wire.progress == seen and not answer.done():
                await asyncio.wait((answer, others), timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
                if not others.done():
                    continue
                if others.result():
                    await asyncio.wait((answer,), timeout=_GRACE)
                    if not answer.done() and wire.progress == seen and not await wire.is_blocked():
                        await self._give_up(wire)
                    return
                await asyncio.wait((answer,), timeout=_LOOK)
                others = asyncio.ensure_future(self._answers_others())
        finally:
            answer.cancel()
            others.cancel()

    async def _give_up(self, wire: Wire) -> None:
        if self._wire is wire:
            logger.warning(
                "The connection to RabbitMQ at %s leads nowhere any more: a new one is made.",
                self.place.shown,
            )
            await self.drop()

    async def _answers_others(self) -> bool:
        """Whether a new connection is greeted."""
        try:
            context = await asyncio.to_thread(self.place.context)
            wire = await connect(self.place.url, context, ANSWER_TIMEOUT)
        except (TimeoutError, ValueError, *DRIVER_ERRORS):
            return False
        await wire.close()
        return True


async def _connect_to(place: Place) -> Wire:
    try:
        context = await asyncio.to_thread(place.context)
    except (OSError, ValueError) as exc:
        raise refused(
            f"broker_use_ssl names certificates that cannot be used ({place.certificates}): {exc}."
        ) from exc
    try:
        return await connect(place.url, context, place.patience)
    except TimeoutError:
        raise BrokerUnavailable(f"RabbitMQ at {place.shown} does not answer.") from None
    except DRIVER_ERRORS as exc:
        raise explained(exc, place.shown) from exc
