"""What the log says of a broker that cannot be had: a line at its beginning, one a minute, and one at its end."""

from __future__ import annotations

from collections.abc import Callable

from celery.utils.log import get_logger

from celeriac.timing import elapsed

__all__ = ["Outage"]

logger = get_logger("celeriac.worker.fetcher")

#: Seconds after which what was said before is said again.
_AGAIN = 60.0


class Outage:
    """Tells of attempts that failed. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = elapsed) -> None:
        self._clock = clock
        self._said = ""
        self._at = self._began = 0.0

    def failed(self, exc: Exception, delay: float) -> None:
        """An attempt has failed, and the next is made after ``delay`` seconds."""
        now, said = self._clock(), str(exc)
        if not self._said:
            self._began = now
        if said == self._said and now - self._at < _AGAIN:
            logger.debug("Cannot receive, trying again in %.2f s: %s", delay, said)
            return
        self._said, self._at = said, now
        logger.error("Cannot receive, trying again until it works: %s", said)

    def over(self) -> None:
        """An attempt has worked."""
        if self._said:
            logger.warning("Receives again, after %.0f seconds.", self._clock() - self._began)
            self._said = ""
