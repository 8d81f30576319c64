"""``celery beat``'s scheduler: Celery's own, which remembers in celeriac's database, and of which one leads.

Every beat makes its entries from the app's configuration, as Celery's does. What it remembers of them, when each last
ran, is in the database, and only the leader acts on it; the others look at the leader's lease now and then. Who takes
over begins with what is remembered, and reads the configuration anew.

**How often a run is sent.** A run is sent by noting it: one transaction checks that this beat still leads and that
nobody has noted a run since, stores the new ``last_run_at``, and stores the message and the task's record. So each run
is sent exactly once, whoever dies, stops or stalls at whatever moment. (Celery's scheduler notes runs in memory and
saves them every three minutes: killed, it sends them again.)

That takes queue, records and schedule in one database. Otherwise, and for the few calls that only Celery's own
publishing understands, the run is noted first and published then: a beat that dies in between has lost that run, and a
message that cannot be published is logged and lost, as with Celery. Missing one run of many is what Celery's users are
used to; a clean-up or an invoice that is sent twice is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from celery import beat
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware
from kombu.utils.objects import cached_property
from sqlalchemy.engine import Connection

from celeriac.config import OWN_DEFAULTS
from celeriac.errors import BrokerUnavailable
from celeriac.publisher import signal_after
from celeriac.scheduler.location import schedule_database
from celeriac.scheduler.publication import EntryPublisher, storing
from celeriac.scheduler.rows import Run
from celeriac.scheduler.state import ScheduleState

__all__ = ["DatabaseScheduler"]

logger = get_logger("celery.beat")  # its users filter for that name

#: Seconds that a beat waits beyond the end of another's lease, so that it does not come a moment too early.
_MARGIN = 0.01


class DatabaseScheduler(beat.Scheduler):  # type: ignore[misc]
    """Celery's scheduler, with its state in the SQLite database of the queue (or of the results).

    Entries, catching up after downtime, and ``beat_max_loop_interval`` are Celery's. A changed schedule is merged as by
    Celery's ``PersistentScheduler``: new entries begin now, removed ones are forgotten, changed ones keep their last
    run. A change of ``timezone`` or ``enable_utc`` forgets nothing, because what is remembered are moments.

    Any number of beats may run. ``celeriac_beat_lease`` is how long, in seconds, a dead leader goes unnoticed.
    Raises ConfigurationError when the app has no such database.
    """

    def __init__(self, app: Any, *args: Any, **options: Any) -> None:
        self._state = ScheduleState(schedule_database(app), _lease(app))
        self._known: dict[str, Run] = {}
        self._in_tick = False
        self._stands_by = False
        super().__init__(app, *args, **options)
        # Often enough to renew the lease, and for it to survive one renewal that is late.
        self.max_interval: float = min(self.max_interval, self._state.lease / 3)

    @property
    def info(self) -> str:
        """What the banner says of it."""
        return f"    . db -> {self._state.url.render_as_string(hide_password=True)}"

    def setup_schedule(self) -> None:
        """Make the entries that the app's configuration has. Touches no database: that is the leader's business."""
        self.schedule: dict[str, Any] = {}
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def tick(self, *args: Any, **options: Any) -> float:
        """Send one run that is due, if this beat leads. Returns seconds until it should be called again.

        Raises BrokerUnavailable when the database cannot be opened, or will not come back.
        """
        opened = self._state.is_open
        self._in_tick = True
        try:
            if not (self._state.keep_lead() or self._take_lead()):
                return self._patience()
            if self.schedule.keys() != self._known.keys() and not self._merge():
                return self._patience()
            seconds: float = super().tick(*args, **options)
            return seconds
        except BrokerUnavailable as exc:
            if exc.permanent or not opened:
                raise
            logger.error("beat: %s Trying again in %.0f seconds.", exc, self.max_interval)
            # What has been noted in memory may not be in the database.
            self._state.step_down()
            return float(self.max_interval)
        finally:
            self._in_tick = False

    def _take_lead(self) -> bool:
        if self._state.other_leader() is not None:
            return False
        # Anew: since this beat began others have sent runs, and its configuration may have changed.
        self.setup_schedule()
        known = self._state.take_lead(self._runs())
        if known is None:
            return False
        self._restore(known)
        self._stands_by = False
        logger.info("beat: Leading, with %d entries.", len(known))
        return True

    def _merge(self) -> bool:
        """Remember entries that were added while this beat runs, and forget removed ones."""
        known = self._state.merge(self._runs())
        if known is None:
            return False
        self._restore(known)
        return True

    def _patience(self) -> float:
        """Seconds until another look at the leader, who may hand over at any time, or die."""
        leader = self._state.other_leader()
        if leader is None:
            return _MARGIN
        if not self._stands_by:
            self._stands_by = True
            logger.warning("beat: %s runs this schedule; waiting to take over.", leader.holder)
        left = leader.ends_at - time.time() + _MARGIN
        return float(min(max(left, _MARGIN), self._state.lease / 4, self.max_interval))

    def _runs(self) -> dict[str, Run]:
        return {name: self._run(entry) for name, entry in self.schedule.items()}

    def _run(self, entry: Any) -> Run:
        # A naive time is one of UTC, as Celery's schedules have it.
        moment: datetime = maybe_make_aware(entry.last_run_at, self.app.timezone)
        return Run(moment.timestamp(), entry.total_run_count)

    def _restore(self, known: Mapping[str, Run]) -> None:
        now = time.time()
        for name, run in known.items():
            entry = self.schedule[name]
            # A last run in the future is of a clock that has been set back: do not stand still until then.
            moment = datetime.fromtimestamp(min(run.last_run_at, now), UTC)
            entry.last_run_at = moment.astimezone(self.app.timezone)
            entry.total_run_count = run.total_run_count
        self._known = dict(known)
        self.old_schedulers = None  # has Celery work out anew what is due when

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a run of an entry that is due, unless another beat has. A run that cannot be sent is logged and lost."""
        try:
            call = self._publisher.call(entry)
            if call is None:
                self._apply_by_celery(entry)
            elif self._claim(entry, storing(call)):
                logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)  # Celery's words
                logger.debug("%s sent. id->%s", entry.task, call.task_id)
                signal_after(call)
        except BrokerUnavailable:
            raise
        except Exception:
            # One entry that cannot be sent must not stop the others, nor be tried for ever.
            logger.exception("beat: Couldn't send scheduled task %s (%s).", entry.name, entry.task)
            self._claim(entry)

    def _apply_by_celery(self, entry: Any) -> None:
        producer = self._celery_producer  # waits for the broker while there is still nothing to lose
        if self._claim(entry):
            super().apply_entry(entry, producer=producer)

    def _claim(self, entry: Any, publish: Callable[[Connection], None] | None = None) -> bool:
        run = self._run(self.schedule[entry.name])  # which Celery has reserved: the next state of the entry
        claimed = self._state.claim(entry.name, self._known[entry.name], run, publish)
        if claimed:
            self._known[entry.name] = run
        else:
            logger.warning("beat: %s was sent or changed by another process; looking again.", entry.name)
        return claimed

    @cached_property
    def _publisher(self) -> EntryPublisher:
        return EntryPublisher(self.app, self._state.url)

    @property
    def producer(self) -> None:
        """Nothing: Celery's scheduler would connect for every run, and hardly any needs it."""

    @cached_property
    def _celery_producer(self) -> Any:
        return self.Producer(self._ensure_connected(), auto_declare=False)

    def close(self) -> None:
        """Hand the lead back, and close the database. Safe to call twice."""
        if self._in_tick:
            # From a signal handler in the middle of a transaction. Celery's handler goes on to raise SystemExit, which
            # rolls it back, and whoever ticks closes then.
            return
        super().close()
        self.__dict__.pop("_celery_producer", None)
        self._state.close()


def _lease(app: Any) -> float:
    settings = getattr(app, "settings", None)  # which an app of stock Celery has not
    return float(settings.beat_lease if settings is not None else OWN_DEFAULTS["celeriac_beat_lease"])
