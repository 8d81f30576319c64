"""The clock that a test moves, with an event loop and without; each step runs what falls due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from celeriac.testing.blocking import run_blocking
from celeriac.testing.clock import duration
from celeriac.testing.stage import Stage

__all__ = ["AsyncClock", "SyncClock"]


class _MovableClock:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def now(self) -> float:
        """The time of the test, in seconds since the epoch."""
        return self._stage.clock.now()

    @property
    def time(self) -> datetime:
        """The time of the test, in UTC."""
        return self._stage.clock.time


class AsyncClock(_MovableClock):
    """The time of the test. It stands still unless it is moved."""

    async def advance(
        self,
        by: float | timedelta = 0.0,
        *,
        days: float = 0.0,
        hours: float = 0.0,
        minutes: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Move it forward. Tasks that fall due on the way run one after the other, each at its time, without waiting.

        Where tasks are held, they fall due and do not run. ``by`` is in seconds. Raises ValueError for a time in the
        past, and what :meth:`InMemoryTasks.idle` does.
        """
        total = duration(by, days=days, hours=hours, minutes=minutes, seconds=seconds)
        await self._stage.advance(total)

    async def move_to(self, at: datetime) -> None:
        """Move it to a time, as :meth:`advance` does; a time without a zone is UTC."""
        aware = at if at.tzinfo else at.replace(tzinfo=UTC)
        await self.advance(aware - self.time)


class SyncClock(_MovableClock):
    """The time of the test. It stands still unless it is moved."""

    def advance(
        self,
        by: float | timedelta = 0.0,
        *,
        days: float = 0.0,
        hours: float = 0.0,
        minutes: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Move it forward, as :meth:`AsyncClock.advance` does."""
        total = duration(by, days=days, hours=hours, minutes=minutes, seconds=seconds)
        run_blocking(self._stage, lambda: self._stage.advance(total))

    def move_to(self, at: datetime) -> None:
        """Move it to a time; a time without a zone is UTC."""
        aware = at if at.tzinfo else at.replace(tzinfo=UTC)
        self.advance(aware - self.time)
