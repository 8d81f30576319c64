"""A due entry as a message and a record that a transaction can store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery.beat import BeatLazyFunc
from sqlalchemy.engine import URL, Connection

from celeriac.app import Celery
from celeriac.brokers.rows import drafts
from celeriac.calls import Call, CallBuilder, NotNative, planned
from celeriac.compat import has_custom
from celeriac.publisher import signal_before
from celeriac.scheduler.location import database_of
from celeriac.sql import messages
from celeriac.sql.transitions import apply_transitions
from celeriac.stores.entries import to_entries
from celeriac.task import Task

__all__ = ["EntryPublisher", "storing"]


class EntryPublisher:
    """Makes the calls of one app's schedule, as ``enqueue`` makes them.

    ``database`` is where the schedule is.
    """

    def __init__(self, app: Any, database: URL) -> None:
        self._app = app
        self._native = isinstance(app, Celery) and _lives_in(app, database)
        self._builder: CallBuilder | None = None

    def call(self, entry: Any) -> Call | None:
        """The call of a due entry; ``None`` when only Celery's own publishing can do what is asked.

        That is so when queue, records and schedule are not in one database, for options such as ``exchange`` and
        ``routing_key``, and for tasks with an ``apply_async`` of their own. Raises as ``enqueue`` does for arguments.
        """
        if not self._native or self._app.conf.task_always_eager:
            return None
        task = self._app.tasks.get(entry.task)
        if task is not None and has_custom(task, "apply_async"):
            return None
        args: Sequence[Any] = [_evaluated(value) for value in entry.args or ()]
        kwargs: Mapping[str, Any] = {key: _evaluated(value) for key, value in (entry.kwargs or {}).items()}
        options = {**entry.options}
        options["headers"] = {**(options.get("headers") or {}), "celery_beat_task": True}
        try:
            if isinstance(task, Task) and task.typing:
                args, kwargs = task.schema.prepare(
                    tuple(args), kwargs, options.get("serializer") or task.serializer
                )
            call = self._calls.build(entry.task, args, kwargs, options)
        except NotNative:
            return None
        # What goes to an exchange is not one row in one queue.
        return call if call.publication.queue else None

    @property
    def _calls(self) -> CallBuilder:
        if self._builder is None:
            self._builder = CallBuilder(self._app)
        return self._builder


def storing(call: Call) -> Callable[[Connection], None]:
    """What stores a call's message and its record. Sends the signal that goes before."""
    signal_before(call)
    rows = drafts([call.publication])
    first = call.record
    later = planned(call.body[2], root_id=first.root_id or first.task_id, at=first.at)
    entries = to_entries([first, *later])

    def store(connection: Connection) -> None:
        messages.insert(connection, rows)
        apply_transitions(connection, entries)

    return store


def _evaluated(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value


def _lives_in(app: Celery, database: URL) -> bool:
    """Whether both the queues and the records of an app are in a database."""
    settings = app.settings
    return all(
        database_of(url) == database
        for url in (settings.broker_url, settings.result_backend or "disabled://")
    )
