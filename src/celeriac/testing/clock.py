"""The time of a test: it stands still until the test moves it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

__all__ = ["Clock", "duration"]


class Clock:
    """A time that stands still. Tasks that are due later wait until it has been moved."""

    def __init__(self, at: datetime | None = None) -> None:
        self._at = time.time() if at is None else _aware(at).timestamp()

    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return self._at

    @property
    def time(self) -> datetime:
        """The time, in UTC."""
        return datetime.fromtimestamp(self._at, UTC)

    def set(self, at: float) -> None:
        """Make it this time, in seconds since the epoch; never earlier than it was."""
        self._at = max(self._at, at)


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def duration(
    by: float | timedelta = 0.0,
    *,
    days: float = 0.0,
    hours: float = 0.0,
    minutes: float = 0.0,
    seconds: float = 0.0,
) -> float:
    """How many seconds that is. Raises ValueError for less than none."""
    whole = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    whole += by if isinstance(by, timedelta) else timedelta(seconds=by)
    if whole < timedelta(0):
        raise ValueError("A test's clock moves forward only.")
    return whole.total_seconds()
