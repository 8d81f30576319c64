"""What time it is: who asks for it again and again is given a function once, so that a test can move its clock."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Now", "system_now"]

#: Seconds since the epoch.
Now = Callable[[], float]

#: The machine's clock.
system_now: Now = time.time
