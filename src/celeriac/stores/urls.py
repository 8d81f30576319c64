"""From a result backend's URL to a store."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit

from celeriac.errors import ConfigurationError
from celeriac.redis.server import SCHEMES
from celeriac.stores.base import Store
from celeriac.stores.disabled import DisabledStore
from celeriac.stores.memory import MemoryStore
from celeriac.stores.redis import RedisStore

__all__ = ["load_store", "memory_name", "store_for"]

_ON_SQLITE = ("sqlite", "db+sqlite")

_SUPPORTED = "sqlite:///celery.db (or db+sqlite:///celery.db), redis://, memory:// and disabled://"


def store_for(
    url: str, *, expires: float | None = 86_400.0, options: Mapping[str, Any] | None = None
) -> Store:
    """The store behind a result backend's URL, not open yet.

    ``expires`` is in seconds; ``None`` keeps records for ever. ``options`` are those of the result backend's transport,
    which the store in Redis takes. Raises ConfigurationError for a URL that no store here understands.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = url, ""
    if scheme == "disabled":
        return DisabledStore()
    if scheme == "memory":
        return MemoryStore(memory_name(url), expires=expires)
    if scheme in _ON_SQLITE:
        # Here, because SQLAlchemy takes long to import, and other stores do without.
        from celeriac.stores.sql import SQLStore

        return SQLStore(f"sqlite://{rest}", expires=expires)
    if scheme in SCHEMES:
        return RedisStore(url, expires=expires, options=options)
    raise ConfigurationError(
        f"There is no store for the result backend {scheme!r}. Supported are {_SUPPORTED}."
    )


def load_store(url: str) -> None:
    """Import what the store of a URL needs, which reads files: not for the event loop."""
    if url.partition(":")[0] in _ON_SQLITE:
        import_module("celeriac.stores.sql")


def memory_name(url: str) -> str:
    """The name of the records that ``memory://name`` means."""
    parts = urlsplit(url)
    return unquote(parts.netloc + parts.path).strip("/")
