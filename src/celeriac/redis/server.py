"""Where a Redis server is and how to talk to it, from the URLs that kombu, Celery and redis-py use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from celeriac.errors import ConfigurationError
from celeriac.redis.sentinels import find_primary

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["REPLY_TIMEOUT", "SCHEMES", "ConnectTimeout", "Server", "count_received", "transport_of"]

#: Schemes of URLs that mean a Redis server. Valkey speaks the same protocol.
SCHEMES = frozenset({"redis", "rediss", "valkey", "valkeys", "unix", "redis+socket", "socket", "sentinel"})

#: Seconds that a server may take for a reply before it counts as gone.
REPLY_TIMEOUT = 5.0

#: Seconds that it may take for a connection and the greetings that follow. Less, because an attempt that has fallen
#: into a hole in the network must not hold up the next one for long once the hole is closed.
CONNECT_TIMEOUT = 2.5

_DEFAULT_PORT = 6379
_DEFAULT_SENTINEL_PORT = 26379

#: Transport options, and query parameters, that redis-py's connections take as they are.
_PASSED = (
    "client_name",
    "credential_provider",
    "health_check_interval",
    "socket_keepalive",
    "socket_keepalive_options",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
)

#: What those begin with that prove who somebody is.
_PROOFS = ("credential_provider", "ssl_")

_INTEGERS = frozenset({"health_check_interval"})
_FLOATS = frozenset({"socket_timeout", "socket_connect_timeout"})
_BOOLEANS = frozenset({"socket_keepalive", "ssl_check_hostname"})


class ConnectTimeout(TimeoutError):
    """The server did not take a connection, or did not answer the greetings, within ``connect_timeout``."""


@dataclass(frozen=True, slots=True)
class Server:
    """A Redis server, or the group of servers that sentinels watch.

    Equal servers share their connections; ``text`` is for messages, and has no password. ``proofs`` are the options
    by which either side proves who it is: nobody gets a login or a certificate check that was meant for another.
    """

    text: str
    address: tuple[tuple[str, int], ...]
    path: str | None = None
    db: int = 0
    master_name: str | None = None
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    reply_timeout: float = REPLY_TIMEOUT
    connect_timeout: float = CONNECT_TIMEOUT
    options: tuple[tuple[str, Any], ...] = field(default=(), repr=False, compare=False)
    proofs: tuple[tuple[str, Any], ...] = field(default=(), repr=False, hash=False)
    min_other_sentinels: int = 0
    sentinel_kwargs: tuple[tuple[str, Any], ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> Server:
        """The server of a broker's or a result backend's URL.

        Args:
            url: ``redis://user:password@host:port/db``, ``rediss://…``, ``unix:///path?db=1``,
                ``redis+socket:///path?virtual_host=1``, ``sentinel://host:port;sentinel://host:port/db``.
            options: Celery's transport options: timeouts in seconds, ``master_name``, ``sentinel_kwargs``,
                ``min_other_sentinels``, and ``ssl``, a mapping like ``broker_use_ssl``.

        Raises:
            ConfigurationError: The URL or an option cannot work, or redis-py is not installed.
        """
        _require_driver()
        first, *more = [urlsplit(part) for part in url.split(";") if part]
        scheme = first.scheme.lower()
        if scheme not in SCHEMES:
            raise ConfigurationError(f"{scheme}:// is no URL of a Redis server.")
        merged = _merged(options or {}, first)
        local = scheme in {"unix", "redis+socket", "socket"}
        port = _DEFAULT_SENTINEL_PORT if scheme == "sentinel" else _DEFAULT_PORT
        path = unquote(first.netloc.rpartition("@")[2] + first.path) if local else None
        if local and not (path or "").startswith("/"):
            path = f"/{path}"
        address = () if local else tuple(_host(part, port) for part in (first, *more))
        master_name = merged.get("master_name")
        if scheme == "sentinel" and not master_name:
            raise ConfigurationError(
                "A sentinel:// URL needs the name of the group: "
                'broker_transport_options = {"master_name": "mymaster"}, and the same in '
                "result_backend_transport_options."
            )
        db = _db(merged, "" if local else (more[-1].path if more and more[-1].path else first.path))
        where = path if local else ", ".join(f"{host}:{number}" for host, number in address)
        name = f"Redis group {master_name!r} of sentinels" if scheme == "sentinel" else "Redis"
        tls = not local and (scheme in {"rediss", "valkeys"} or bool(merged.get("ssl")))
        return cls(
            text=f"{name} at {where}",
            address=address,
            path=path,
            db=db,
            master_name=master_name if scheme == "sentinel" else None,
            tls=tls,
            username=unquote(first.username) if first.username else merged.get("username"),
            password=unquote(first.password) if first.password else merged.get("password"),
            reply_timeout=_seconds(merged, "socket_timeout", REPLY_TIMEOUT),
            connect_timeout=_seconds(merged, "socket_connect_timeout", CONNECT_TIMEOUT),
            options=(passed := _passed(merged, tls=tls)),
            proofs=tuple(option for option in passed if option[0].startswith(_PROOFS)),
            min_other_sentinels=int(merged.get("min_other_sentinels") or 0),
            sentinel_kwargs=tuple((merged.get("sentinel_kwargs") or {}).items()),
        )

    async def connect(self) -> AbstractConnection:
        """A connection of redis-py, connected; to a group's current primary.

        Raises what redis-py raises, and ConnectTimeout.
        """
        connection = self._connection(await self._primary(self.master_name) if self.master_name else None)
        try:
            async with asyncio.timeout(self.connect_timeout) as limit:
                await connection.connect()  # type: ignore[no-untyped-call]
                await _greet(connection)
        except BaseException as exc:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)
            if isinstance(exc, TimeoutError) and limit.expired():
                raise ConnectTimeout from exc
            raise
        return connection

    def _connection(self, primary: tuple[str, int] | None) -> AbstractConnection:
        from redis.asyncio import connection as driver

        options: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            "socket_timeout": self.reply_timeout,
            "socket_connect_timeout": self.connect_timeout,
            "protocol": 2,  # in 3, what is published would come between replies
            **_unannounced(),
            **dict(self.options),
        }
        if "credential_provider" in options:
            del options["username"], options["password"]
        if self.path is not None:
            for name in ("socket_keepalive", "socket_keepalive_options"):
                options.pop(name, None)
            return driver.UnixDomainSocketConnection(path=self.path, **options)
        host, port = primary or self.address[0]
        kind = driver.SSLConnection if self.tls else driver.Connection
        return kind(host=host, port=port, **options)

    async def _primary(self, name: str) -> tuple[str, int]:
        """Where the sentinels say the group's primary is."""
        timeouts = {"socket_timeout": self.connect_timeout, "socket_connect_timeout": self.connect_timeout}
        options = {**timeouts, **_unannounced(), **dict(self.sentinel_kwargs)}
        return await find_primary(self.address, name, self.min_other_sentinels, options)


async def _greet(connection: AbstractConnection) -> None:
    """Have the server say something: a connection may lead to nobody, and without a login nothing is said at first."""
    from redis.exceptions import NoPermissionError

    await connection.send_packed_command(connection.pack_command("PING"), check_health=False)
    # A user who may not do this is known all the same.
    with contextlib.suppress(NoPermissionError):
        await connection.read_response(disconnect_on_error=False)


def transport_of(connection: AbstractConnection) -> asyncio.WriteTransport | None:
    """What writes a connection's bytes, for which redis-py has no public name."""
    writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
    return None if writer is None else writer.transport


def count_received(connection: AbstractConnection, count: Callable[[int], None]) -> None:
    """Have ``count`` called with the number of bytes whenever some arrive, for which redis-py has no way."""
    stream: Any = getattr(connection, "_reader", None)
    if stream is None:
        return
    feed = stream.feed_data

    def feed_and_count(data: bytes) -> None:
        count(len(data))
        feed(data)

    stream.feed_data = feed_and_count


def _require_driver() -> None:
    try:
        import redis.asyncio  # noqa: F401
    except ImportError:
        raise ConfigurationError('Redis needs the redis-py package: pip install "celeriac[redis]".') from None


@cache
def _unannounced() -> dict[str, None]:
    """What keeps redis-py from looking up its own version, in files, for each connection, to tell it to the server."""
    try:
        import redis.driver_info  # noqa: F401
    except ImportError:  # before redis-py 7.1
        return {"lib_name": None, "lib_version": None}
    return {"driver_info": None}


def _merged(options: Mapping[str, Any], url: SplitResult) -> dict[str, Any]:
    """Options and the URL's query; the query wins."""
    merged = dict(options)
    ssl = merged.get("ssl")
    if isinstance(ssl, Mapping):
        merged.update(ssl)
    for name, text in parse_qsl(url.query):
        merged[name] = _parsed(name, text)
    return merged


def _parsed(name: str, text: str) -> Any:
    try:
        if name in _INTEGERS:
            return int(text)
        if name in _FLOATS:
            return float(text)
    except ValueError:
        raise ConfigurationError(f"{name} in the Redis URL must be a number, not {text!r}.") from None
    if name in _BOOLEANS:
        return text.lower() not in {"0", "false", "no", "off"}
    if name == "ssl_cert_reqs" and text.upper().startswith("CERT_"):
        return text[len("CERT_") :].lower()
    return text


def _passed(merged: Mapping[str, Any], *, tls: bool) -> tuple[tuple[str, Any], ...]:
    # Keepalive by default: a peer that vanished without a word is noticed although nothing is sent to it.
    found: dict[str, Any] = {"socket_keepalive": True}
    wanted = [name for name in _PASSED if tls or not name.startswith("ssl_")]
    found |= {name: merged[name] for name in wanted if merged.get(name) is not None}
    return tuple(found.items())


def _host(url: SplitResult, port: int) -> tuple[str, int]:
    try:
        return url.hostname or "127.0.0.1", url.port or port
    except ValueError as exc:
        raise ConfigurationError(f"The Redis URL has no valid port: {exc}.") from None


def _db(merged: Mapping[str, Any], path: str) -> int:
    text = str(merged.get("virtual_host") or merged.get("db") or path).strip("/") or "0"
    if not text.isdigit():
        raise ConfigurationError(f"The database in a Redis URL is a number, not {text!r}.")
    return int(text)


def _seconds(merged: Mapping[str, Any], name: str, default: float) -> float:
    value = merged.get(name)
    try:
        return default if value is None else float(value)
    except ValueError:
        raise ConfigurationError(f"{name} must be a number, not {value!r}.") from None
