"""Which broker a URL means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from celeriac.brokers.base import Broker
from celeriac.errors import ConfigurationError
from celeriac.redis.server import SCHEMES

__all__ = ["broker_for"]

_SUPPORTED = (
    "Supported are redis://host:port/db (also rediss://, valkey://, unix:// and sentinel://), "
    "sqlite:///relative/path.db, sqlite:////absolute/path.db, memory:// and memory://name."
)


def broker_for(url: str, *, lease: float = 30.0, options: Mapping[str, Any] | None = None) -> Broker:
    """The broker that ``url`` names, not yet open.

    Args:
        url: ``redis://host:port/db``, ``sqlite:///file.db`` or ``memory://name``.
        lease: Seconds that a delivery belongs to its consumer unless renewed.
        options: Celery's ``broker_transport_options``; what a broker does not know it ignores.

    Raises:
        ConfigurationError: The URL names no broker, or one that is not supported.
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
    if scheme.startswith(("sqla+", "sqlalchemy+")):
        plain = url.partition("+")[2]
        raise ConfigurationError(
            f"{scheme}:// is kombu's SQLAlchemy transport, with tables of its own that celeriac does not read. "
            f"Use {plain!r} instead, everywhere. {_SUPPORTED}"
        )
    raise ConfigurationError(f"There is no broker for {scheme!r} URLs. {_SUPPORTED}")


def _name(url: str) -> str:
    parts = urlsplit(url)
    return unquote(parts.netloc + parts.path).strip("/")
