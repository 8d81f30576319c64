"""Notices that this process could not write for a while: somebody held the lock for long, the disk was full, or the
process was stopped, with the whole machine perhaps.

Then nobody could renew a lease either, so that those which ended meanwhile say nothing about their holders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from celeriac.errors import BrokerUnavailable

__all__ = ["MERCY", "Sparing", "Stall", "Stalls"]

#: Seconds that a transaction may take, its wait for the lock included, before that counts; and those that may go by on
#: the clock alone, because the machine slept or the clock was set.
_LONGEST = 0.5

#: Seconds that the holders of leases get to renew them when nobody could write for a while: as a rule, and besides the
#: time between two looks of theirs where that while was long, as the machine may have slept.
MERCY = 1.0


class Stall(NamedTuple):
    """A transaction that took long, or takes long already: from when until when, in epoch seconds."""

    began: float = 0.0
    until: float = 0.0

    @property
    def took(self) -> float:
        """Seconds."""
        return self.until - self.began


class Stalls:
    """Watches the transactions of one thread.

    By ``clock``, epoch seconds: ``steady`` stands still while a machine sleeps, which shows between two looks.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._steady = clock, steady
        self._offset = clock() - steady()
        self._began: float | None = None
        self._last = Stall()
        #: Whether the database did not let the last transaction happen.
        self.failing = False

    def timed(self, transact: Callable[[], None]) -> None:
        """Run a transaction, and see how long it takes."""
        self._began = self._clock()
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
        """The last one; the one that is under way, if it takes long already. To be asked now and then."""
        now, began = self._clock(), self._began
        former, self._offset = self._offset, now - self._steady()
        if self._offset - former > _LONGEST:
            self._last = Stall(now - (self._offset - former), now)
        if began is not None and now - began > _LONGEST:
            return Stall(began, now)
        return self._last


class Sparing:
    """Until when leases that have ended are left to their holders, because of a stall.

    Not again within half a lease: a database that is slow all the time must not keep dead workers' tasks.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self._because_of = 0.0

    def spares(self, stall: Stall, lease: float, now: float) -> bool:
        """Whether not to take over what others hold for ``lease`` seconds, ``stall`` being the last."""
        if stall.began == self._because_of or stall.until > self.until + lease / 2:
            self._because_of = stall.began
            self.until = stall.until + MERCY + (lease / 12 if stall.took > lease / 2 else 0.0)
        return now < self.until
