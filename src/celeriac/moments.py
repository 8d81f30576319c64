"""When a call is due and when it expires, as Celery's headers have it and in seconds.

The rules are those of ``celery.app.base.Celery.send_task`` and ``celery.app.amqp.AMQP.as_task_v2``: a time without a
zone is UTC, and a number of seconds counts from now, in the app's time zone.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.protocol.builder import TaskHeaders

__all__ = ["Clock"]

logger = logging.getLogger("celeriac.publisher")


class Clock:
    """Reads the times in the options of one app's calls. ``now`` is always in seconds since the epoch."""

    def __init__(self, app: Any) -> None:
        self._timezone = app.timezone

    def eta(self, at: Any, countdown: Any, now: float, headers: TaskHeaders) -> float | None:
        """The earliest time of a call, which becomes a header: a datetime, ISO text, or seconds from now.

        Raises ValueError for a text that is no time.
        """
        if countdown:  # zero is none, as in Celery
            at = countdown
        if not at and not isinstance(at, (int, float)):
            return None
        headers["eta"], moment = self._read(at, now)
        return moment

    def expiry(
        self, task_id: str, at: Any, now: float, headers: TaskHeaders
    ) -> tuple[float | None, float | None]:
        """When a call expires, which becomes a header, and for how many seconds its message is worth keeping."""
        if at is None:
            return None, None
        headers["expires"], moment = self._read(at, now)
        seconds = _seconds(at)
        if seconds is None:
            seconds = moment - now
        if seconds < 0:
            # RabbitMQ drops a message that may wait no time at all, unless a consumer takes it at once.
            logger.warning("Task %s expired %g s ago, before it was published.", task_id, -seconds)
            seconds = 0.0
        return moment, seconds

    def _read(self, at: Any, now: float) -> tuple[str, float]:
        seconds = _seconds(at)
        if seconds is not None:
            moment = now + seconds
            return datetime.fromtimestamp(moment, self._timezone).isoformat(), moment
        when = datetime.fromisoformat(at) if isinstance(at, str) else at
        text = at if isinstance(at, str) else at.isoformat()
        return text, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _seconds(at: Any) -> float | None:
    if isinstance(at, timedelta):
        return at.total_seconds()
    return at if isinstance(at, (int, float)) else None
