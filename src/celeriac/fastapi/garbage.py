"""Python's cyclic garbage collector, told what an API is like."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["spare_what_stays"]

#: Python 3.12 begins with a few hundred frozen objects of its own; who freezes a program has many times more.
_OF_PYTHON = 1000

_users = 0
_frozen = False


@contextmanager
def spare_what_stays() -> Iterator[None]:
    """While the context lasts, the collector does not look at what was there when it began.

    Requests that wait for a broker, or for anything else, outlive a collection or two, and the collector then looks
    through everything: 40 to 80 ms, in which no request is served. What comes later is collected as often as ever.
    """
    global _users, _frozen
    _users += 1
    # The first of several apps for all: what those that come and go beside it leave behind would never be collected.
    if _users == 1 and gc.get_freeze_count() < _OF_PYTHON:  # otherwise somebody else has decided
        gc.freeze()
        _frozen = True
    try:
        yield
    finally:
        _users -= 1
        if not _users and _frozen:
            gc.unfreeze()
            _frozen = False
