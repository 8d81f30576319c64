"""Notices that this process could not write for a while: somebody held the lock for long, the disk was full, or the
process was stopped.

Then nobody could renew a lease either, so that those which ended meanwhile say nothing about their holders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from celeriac.errors import BrokerUnavailable

__all__ = ["Stall", "Stalls"]

#: Seconds that a transaction may take, its wait for the lock included, before that counts.
_LONGEST = 0.5


class Stall(NamedTuple):
    """A transaction that took long, or takes long already: from when until when, in epoch seconds."""

    began: float = 0.0
    until: float = 0.0

    @property
    def took(self) -> float:
        """Seconds."""
        return self.until - self.began


class Stalls:
    """Watches the transactions of one thread. Wall time: the monotonic clock stands still while a machine sleeps."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._last = Stall()
        #: Whether the database did not let the last transaction happen.
        self.failing = False

    def timed(self, transact: Callable[[], None]) -> None:
        """Run a transaction, and see how long it takes."""
        self._began = time.time()
        try:
            transact()
        except BrokerUnavailable:
            self.failing = True
            raise
        else:
            self.failing = False
        finally:
            self._last = self.last()
            self._began = None

    def last(self) -> Stall:
        """The last one; the one that is under way, if it takes long already."""
        now, began = time.time(), self._began
        if began is not None and now - began > _LONGEST:
            return Stall(began, now)
        return self._last
