"""What time it is: who asks for it again and again is given a function once, so that a test can move its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

__all__ = ["Now", "elapsed", "system_now"]

#: Seconds since the epoch.
Now = Callable[[], float]

#: The machine's clock.
system_now: Now = time.time


def _with_sleep() -> Callable[[], float]:
    if boottime := getattr(time, "CLOCK_BOOTTIME", None):
        return partial(time.clock_gettime, boottime)
    return time.monotonic


#: Seconds that have gone by, those that the machine slept included where it tells; nobody can set it.
elapsed: Callable[[], float] = _with_sleep()
