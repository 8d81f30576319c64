"""``celery beat``, which says in one sentence why it cannot run."""

from __future__ import annotations

from celery import beat
from celery.apps.beat import Beat as CeleryBeat
from celery.utils.log import get_logger

from celeriac.errors import CeleriacError, ConfigurationError

__all__ = ["Beat", "Service"]

logger = get_logger("celery.beat")


class Service(beat.Service):  # type: ignore[misc]
    """Celery's loop around a scheduler."""

    def start(self, embedded_process: bool = False) -> None:
        """Run until stopped. Exits with code 1 when the schedule's database cannot be used."""
        try:
            super().start(embedded_process=embedded_process)
        except CeleriacError as exc:
            # Celery would log where in its code and ours it was, which helps nobody to repair a file.
            logger.critical("beat: %s", exc)
            raise SystemExit(1) from exc

    def sync(self) -> None:
        """Save the schedule, if there is one yet."""
        # Celery's signal handlers call this, also in the middle of the making of the scheduler. Celery would make
        # another one then, out of modules that are half imported.
        if "scheduler" in self.__dict__:
            super().sync()


class Beat(CeleryBeat):  # type: ignore[misc]
    """Celery's beat program."""

    Service = Service

    def start_scheduler(self) -> None:
        """Run until stopped. Exits with code 1 when the configuration does not allow it."""
        try:
            super().start_scheduler()
        except ConfigurationError as exc:  # from the banner, before there is a log
            raise SystemExit(str(exc)) from exc
