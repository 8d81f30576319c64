"""From a result backend's URL to a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from celeriac.errors import ConfigurationError
from celeriac.stores.base import Store
from celeriac.stores.disabled import DisabledStore
from celeriac.stores.memory import MemoryStore
from celeriac.stores.sql import SQLStore

__all__ = ["store_for"]

_SUPPORTED = "sqlite:///celery.db (or db+sqlite:///celery.db), memory:// and disabled://"


def store_for(
    url: str, *, expires: float | None = 86_400.0, options: Mapping[str, Any] | None = None
) -> Store:
    """The store behind a result backend's URL, not open yet.

    ``expires`` is in seconds; ``None`` keeps records for ever. ``options`` are those of the result backend's transport;
    the stores here have none. Raises ConfigurationError for a URL that no store here understands.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = url, ""
    if scheme == "disabled":
        return DisabledStore()
    if scheme == "memory":
        return MemoryStore(rest.strip("/"), expires=expires)
    if scheme in ("sqlite", "db+sqlite"):
        return SQLStore(_sqlite_url(f"sqlite://{rest}"), expires=expires)
    raise ConfigurationError(
        f"There is no store for the result backend {scheme!r}. Supported are {_SUPPORTED}."
    )


def _sqlite_url(url: str) -> str:
    try:
        database = make_url(url).database
    except (ArgumentError, ValueError) as exc:
        raise ConfigurationError(f"The result backend {url!r} is no URL: {exc}") from exc
    if not database or database == ":memory:":
        raise ConfigurationError(
            f"The result backend {url!r} names no file. For a store in memory use memory://."
        )
    return url
