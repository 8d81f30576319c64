"""Which broker a URL means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from kombu.transport import TRANSPORT_ALIASES

from celeriac.brokers.base import Broker
from celeriac.config import AMQP_SCHEMES, DEFAULT_BROKER_URL
from celeriac.errors import ConfigurationError
from celeriac.redis.server import SCHEMES

__all__ = ["broker_for"]

_SUPPORTED = (
    "Supported are redis://host:port/db (also rediss://, valkey://, unix:// and sentinel://), amqp://host:port/vhost "
    "(also amqps://), sqlite:///relative/path.db, sqlite:////absolute/path.db, memory:// and memory://name, and every "
    "other transport that kombu knows: sqs://, confluentkafka://, zookeeper://, sqla+postgresql://, filesystem://, …"
)


def broker_for(
    url: str,
    *,
    lease: float = 30.0,
    options: Mapping[str, Any] | None = None,
    kept_in: str = DEFAULT_BROKER_URL,
    kept_with: Mapping[str, Any] | None = None,
    queue_arguments: Callable[[str], Mapping[str, Any]] | None = None,
) -> Broker:
    """The broker that ``url`` names, not yet open.

    Args:
        url: ``redis://host:port/db``, ``amqp://host:port/vhost``, ``sqlite:///file.db``, ``memory://name``, or any
            other URL that kombu has a transport for.
        lease: Seconds that a delivery belongs to its consumer unless renewed.
        options: Celery's ``broker_transport_options``; what a broker does not know it ignores.
        kept_in: The URL, ``sqlite://``, ``redis://`` or ``memory://``, of the place where messages wait that a kombu
            transport cannot keep itself: delayed ones, dead letters.
        kept_with: Transport options of that place.
        queue_arguments: Gives the arguments with which RabbitMQ declares a queue, by its name.

    Raises:
        ConfigurationError: The URL names no broker, or one that is not supported, or its extra is missing.
    """
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
        return _amqp(url, lease, options, queue_arguments)
    if scheme.partition("+")[0] in TRANSPORT_ALIASES:
        from celeriac.brokers.kombu import KombuBroker  # type: ignore[import-not-found]

        keeper = broker_for(kept_in, lease=lease, options=kept_with)
        return KombuBroker(url, lease=lease, options=options, keeper=keeper)  # type: ignore[no-any-return]
    raise ConfigurationError(f"There is no broker for {scheme!r} URLs. {_SUPPORTED}")


def _amqp(
    url: str,
    lease: float,
    options: Mapping[str, Any] | None,
    queue_arguments: Callable[[str], Mapping[str, Any]] | None,
) -> Broker:
    try:
        from celeriac.brokers.amqp import QUORUM, AMQPBroker
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in {"aiormq", "pamqp"}:
            raise
        raise ConfigurationError(
            'RabbitMQ needs the package aiormq: pip install "celeriac[rabbitmq]".'
        ) from exc
    return AMQPBroker(
        url, lease=lease, options=options, queue_arguments=queue_arguments or (lambda _: QUORUM)
    )


def _name(url: str) -> str:
    parts = urlsplit(url)
    return unquote(parts.netloc + parts.path).strip("/")
