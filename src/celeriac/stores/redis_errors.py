"""What goes wrong with Redis, as the stores' callers know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celeriac.errors import BrokerUnavailable, StoreUnavailable

__all__ = ["store_error", "store_errors"]


def store_error(error: BrokerUnavailable) -> StoreUnavailable:
    """The store's error that says the same."""
    found = StoreUnavailable(str(error))
    found.permanent, found.why = error.permanent, error.why
    found.__cause__ = error
    return found


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise StoreUnavailable for BrokerUnavailable."""
    try:
        yield
    except BrokerUnavailable as exc:
        raise store_error(exc) from exc
