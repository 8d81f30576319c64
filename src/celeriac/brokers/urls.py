"""Which broker a URL means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from celeriac.brokers.base import Broker
from celeriac.brokers.kombu_transports import bridge, is_bridged, source_class
from celeriac.config import AMQP_SCHEMES, DEFAULT_BROKER_URL
from celeriac.errors import ConfigurationError
from celeriac.protocol.exchanges import QueueFlags
from celeriac.redis.server import SCHEMES

if TYPE_CHECKING:
    from celeriac.brokers.amqp import AMQPBroker

__all__ = ["broker_for", "check_for_kombu", "load_driver"]

#: What needs SQLAlchemy, or is built of the same rows; it takes long to import.
_ON_SQLALCHEMY = {"sqlite": "celeriac.brokers.sql", "memory": "celeriac.brokers.memory"}

#: A login that ends the URL's authority by itself: no port stands there, and an @ comes later.
#: kombu takes Azure's keys as they are.
_UNQUOTED = re.compile(r"(?!azure)[\w+.-]+://[^/?#@;,\[]*:(?!\d*[/?#])[^/?#@;,]+[/?#].*@")

_SUPPORTED = (
    "Supported are redis://host:port/db (also rediss://, valkey://, unix:// and sentinel://), amqp://host:port/vhost "
    "(also amqps://), sqlite:///relative/path.db, sqlite:////absolute/path.db, memory://, memory://name, and the "
    "transports of kombu's."
)


def broker_for(
    url: str,
    *,
    lease: float = 30.0,
    options: Mapping[str, Any] | None = None,
    queue_arguments: Callable[[str], Mapping[str, Any]] | None = None,
    queue_flags: Callable[[str], QueueFlags] | None = None,
    delay_queue_type: str = "quorum",
    kept_in: str = DEFAULT_BROKER_URL,
    keeper_options: Mapping[str, Any] | None = None,
) -> Broker:
    """The broker that ``url`` names, not yet open.

    Args:
        url: ``redis://host:port/db``, ``amqp://host:port/vhost``, ``sqlite:///file.db``, ``memory://name``, or what
            one of kombu's other transports takes.
        lease: Seconds that a delivery belongs to its consumer unless renewed.
        options: Celery's ``broker_transport_options``; what a broker does not know it ignores.
        queue_arguments: Gives the arguments with which RabbitMQ declares a queue, by its name.
        queue_flags: Gives the flags with which it does so.
        delay_queue_type: The type of the queues in which RabbitMQ delays messages, ``quorum`` or ``classic``.
        kept_in: The URL of a broker of ours, which keeps for kombu's transports what they cannot.
        keeper_options: Transport options of that one.

    Raises:
        ConfigurationError: The URL names no broker, or one that is not supported, or its extra is missing.
    """
    _check_login(url)
    scheme = url.partition(":")[0].lower()
    if scheme == "sqlite":
        from celeriac.brokers.sql import SQLBroker

        return SQLBroker(url, lease=lease)
    if scheme == "memory":
        from celeriac.brokers.memory import MemoryBroker

        return MemoryBroker(_name(url), lease=lease)
    if scheme in SCHEMES:
        from celeriac.brokers.redis import RedisBroker

        return RedisBroker(url, lease=lease, options=options)
    if scheme in AMQP_SCHEMES:
        return _amqp()(
            url,
            lease=lease,
            options=options,
            queue_arguments=queue_arguments,
            queue_flags=queue_flags,
            delay_queue_type=delay_queue_type,
        )
    if is_bridged(url):
        keeper = broker_for(kept_in, lease=lease, options=keeper_options)
        return bridge(url, keeper, options=options, lease=lease)
    raise ConfigurationError(f"There is no broker for {scheme!r} URLs. {_SUPPORTED}")


def check_for_kombu(url: str) -> None:
    """Raise ConfigurationError for a URL of which kombu would say something else, or not what is missing for it."""
    _check_login(url)
    if is_bridged(url):
        source_class(url)


def _check_login(url: str) -> None:
    """Raise ConfigurationError for a URL that nobody can read, as something in its login is not quoted.

    Nothing of it is shown: who reads it all the same takes the beginning of the password for a port, and says so.
    """
    if _UNQUOTED.match(url):
        raise ConfigurationError(
            "The broker's URL cannot be read: write a / in its user or password as %2F, a ? as %3F and a # as %23."
        )


def load_driver(url: str) -> None:
    """Import what the broker of a URL needs, which reads files: not for the event loop. Raises as broker_for does."""
    scheme = url.partition(":")[0].lower()
    if scheme in AMQP_SCHEMES:
        _amqp()
    elif scheme in _ON_SQLALCHEMY:
        import_module(_ON_SQLALCHEMY[scheme])
    elif is_bridged(url):
        source_class(url)


def _amqp() -> type[AMQPBroker]:
    try:
        from celeriac.brokers.amqp import AMQPBroker
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in {"aiormq", "pamqp"}:
            raise
        raise ConfigurationError(
            'RabbitMQ needs the package aiormq: pip install "celeriac[rabbitmq]".'
        ) from exc
    return AMQPBroker


def _name(url: str) -> str:
    parts = urlsplit(url)
    return unquote(parts.netloc + parts.path).strip("/")
