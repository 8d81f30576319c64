"""The periodic schedule in a test: its entries are sent when the test's clock passes their times."""

from __future__ import annotations

import math
from typing import Any

from celery.beat import BeatLazyFunc, ScheduleEntry

from celeriac.testing.clock import Clock

__all__ = ["Schedule"]


class Schedule:
    """The entries of ``beat_schedule``, as if beat had started when the test did.

    Whoever makes one reads the app's configuration: not for the event loop.
    """

    def __init__(self, celery: Any, clock: Clock) -> None:
        self._celery = celery
        self._clock = clock
        self._entries = [
            ScheduleEntry(**{**dict(entry), "name": name, "app": celery})
            for name, entry in celery.conf.beat_schedule.items()
        ]

    def next_due(self) -> float:
        """When the next entry is due, in seconds since the epoch; infinity without entries."""
        return min((self._due(entry) for entry in self._entries), default=math.inf)

    def _due(self, entry: Any) -> float:
        due, seconds = entry.is_due()
        # Whole microseconds, as schedules count.
        return self._clock.now() if due else round(self._clock.now() + max(seconds, 1e-6), 6)

    async def send_due(self) -> None:
        """Enqueue what is due now."""
        for index, entry in enumerate(self._entries):
            if entry.is_due()[0]:
                self._entries[index] = next(entry)
                args = [_evaluated(value) for value in entry.args or ()]
                kwargs = {key: _evaluated(value) for key, value in (entry.kwargs or {}).items()}
                await self._celery.enqueue(entry.task, args, kwargs, **entry.options)


def _evaluated(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value
