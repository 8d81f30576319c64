"""The tables: Celery's own for results, with columns of ours added, and ours for messages and events.

``celery_taskmeta`` is what Celery's SQLAlchemy result backend creates and reads (the columns up to
``stamps``); a stock worker may write it. ``version`` tells our writes from foreign ones: we raise it with
every state that we write. Triggers append the ``state`` events.
"""

from __future__ import annotations

import sqlalchemy as sa

from celeriac.sql.triggers import triggers

__all__ = [
    "DEAD",
    "DELAYED",
    "LEASED",
    "READY",
    "binding",
    "cancel_mark",
    "chord",
    "chord_part",
    "event",
    "expired_record",
    "idempotency_key",
    "is_dead",
    "is_delayed",
    "is_leased",
    "is_moving",
    "is_ready",
    "is_unsuccessful",
    "leader",
    "message",
    "metadata",
    "queue",
    "schedule",
    "task_group",
    "task_record",
    "triggers",
]

metadata = sa.MetaData()

# The states of a message. READY ones are in an index of their own, in the order in which they are delivered.
READY, LEASED, DELAYED, DEAD = 0, 1, 2, 3

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

message = sa.Table(
    "celeriac_message",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False, default=READY),
    sa.Column("priority", sa.SmallInteger, nullable=False, default=0),
    sa.Column("due", sa.Float, nullable=True),  # epoch seconds: end of the delay or of the lease
    sa.Column("deliveries", sa.Integer, nullable=False, default=0),
    sa.Column(
        "leases", sa.Integer, nullable=False, default=0, server_default="0"
    ),  # only ever grows: makes a delivery's tag unique
    sa.Column("task_id", sa.Text, nullable=False, default=""),
    sa.Column("task", sa.Text, nullable=False, default=""),
    sa.Column("envelope", sa.Text, nullable=False),  # kombu's virtual envelope, JSON
    sa.Column("expires", sa.Float, nullable=True),  # epoch seconds: of fanout copies that nobody may come for
    sa.Column("reason", sa.Text, nullable=True),  # why it is DEAD; its time of death is in ``due``
    sqlite_autoincrement=True,
)

# A partial index serves a query whose condition reads the same: hence literals, never bound parameters.
_state = message.c.state
is_ready = _state == sa.literal_column(str(READY))
is_leased = _state == sa.literal_column(str(LEASED))
is_delayed = _state == sa.literal_column(str(DELAYED))
is_dead = _state == sa.literal_column(str(DEAD))
is_moving = _state.in_([sa.literal_column(str(LEASED)), sa.literal_column(str(DELAYED))])
_expires = message.c.expires.is_not(None)

sa.Index(
    "celeriac_message_ready",
    message.c.queue,
    message.c.priority.desc(),
    message.c.id,
    sqlite_where=is_ready,
    postgresql_where=is_ready,
)
sa.Index("celeriac_message_due", message.c.due, sqlite_where=is_moving, postgresql_where=is_moving)
sa.Index("celeriac_message_dead", message.c.due, sqlite_where=is_dead, postgresql_where=is_dead)
sa.Index("celeriac_message_expires", message.c.expires, sqlite_where=_expires, postgresql_where=_expires)

# Declared queues and exchange bindings, for kombu's exchanges (fanout of remote control, topic of events).
queue = sa.Table(
    "celeriac_queue",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("expires_after", sa.Float, nullable=True),  # seconds without use after which it goes, or NULL
    sa.Column("used_at", sa.Float, nullable=False),  # epoch seconds
    sa.Column("message_ttl", sa.Float, nullable=True),  # seconds that a message waits in it at most, or NULL
)
binding = sa.Table(
    "celeriac_binding",
    metadata,
    sa.Column("exchange", sa.Text, primary_key=True),
    sa.Column("routing_key", sa.Text, primary_key=True),
    sa.Column("queue", sa.Text, primary_key=True),
    sa.Column("pattern", sa.Text, nullable=False, default=""),
)

task_record = sa.Table(
    "celery_taskmeta",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("task_id", sa.String(155), unique=True),
    sa.Column("status", sa.String(50)),
    sa.Column("result", sa.LargeBinary),
    sa.Column("date_done", sa.DateTime),
    sa.Column("traceback", sa.Text),
    sa.Column("children", sa.LargeBinary),
    sa.Column("name", sa.String(155)),
    sa.Column("args", sa.LargeBinary),
    sa.Column("kwargs", sa.LargeBinary),
    sa.Column("worker", sa.String(155)),
    sa.Column("retries", sa.Integer),
    sa.Column("queue", sa.String(155)),
    sa.Column("stamps", sa.LargeBinary),
    # ours
    sa.Column("version", sa.Integer, nullable=True),
    sa.Column("owner", sa.Text),
    sa.Column("root_id", sa.Text),
    sa.Column("parent_id", sa.Text),
    sa.Column("group_id", sa.Text),
    sa.Column("enqueued_at", sa.Float),
    sa.Column("eta", sa.Float),
    sa.Column("expires_at", sa.Float),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("changed_at", sa.Float),  # when it entered its state
    sa.Column("error", sa.Text),  # "ValueError - what it said"
    sa.Column("attempts", sa.Text),  # JSON list
    sa.Column("progress", sa.Text),  # JSON object
    sa.Column("cancel_requested_at", sa.Float),
    sqlite_autoincrement=True,
)

# Most records end as SUCCESS, and a list of those is found from the newest backwards; the others may be few
# among many. The index shrinks with each success, so it stays small and in memory.
is_unsuccessful = task_record.c.status != sa.literal_column("'SUCCESS'")
sa.Index(
    "celeriac_record_unsuccessful",
    task_record.c.status,
    task_record.c.id,
    sqlite_where=is_unsuccessful,
    postgresql_where=is_unsuccessful,
)
# For lists of one task, and of one owner (free where nobody has one).
sa.Index("celeriac_record_name", task_record.c.name, task_record.c.id)
_owned = task_record.c.owner.is_not(None)
sa.Index(
    "celeriac_record_owner",
    task_record.c.owner,
    task_record.c.id,
    sqlite_where=_owned,
    postgresql_where=_owned,
)
# Celery's own; for deleting what has expired.
sa.Index("ix_celery_taskmeta_date_done", task_record.c.date_done)

# Celery's own, for groups.
task_group = sa.Table(
    "celery_tasksetmeta",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("taskset_id", sa.String(155), unique=True),
    sa.Column("result", sa.LargeBinary),
    sa.Column("date_done", sa.DateTime),
    sqlite_autoincrement=True,
)
sa.Index("ix_celery_tasksetmeta_date_done", task_group.c.date_done)

# Chords that wait for parts, or that are done and remembered for a while; the structure of complex headers is in
# ``celery_tasksetmeta``.
chord = sa.Table(
    "celeriac_chord",
    metadata,
    sa.Column("group_id", sa.Text, primary_key=True),
    sa.Column("size", sa.Integer),  # NULL until it is known; parts may come before
    sa.Column("extended", sa.Integer, nullable=False, default=0, server_default="0"),  # by add_to_chord
    sa.Column("returned", sa.Integer, nullable=False, default=0, server_default="0"),  # parts that are done
    sa.Column("token", sa.Text),  # of who calls the body
    sa.Column("claimed_until", sa.Float),  # epoch seconds
    sa.Column("done", sa.SmallInteger, nullable=False, default=0, server_default="0"),
    sa.Column("changed_at", sa.Float, nullable=False),  # epoch seconds
)
sa.Index("celeriac_chord_changed", chord.c.changed_at)
chord_part = sa.Table(
    "celeriac_chord_part",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("group_id", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),  # in the header
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("result", sa.Text, nullable=False),  # JSON
)
sa.Index(
    "celeriac_chord_part_once", chord_part.c.group_id, chord_part.c.task_id, chord_part.c.place, unique=True
)

# ``record_id`` and not the task's id: random ids would scatter the index, and every event would write a page
# of its own. The newest event is never deleted, so that an id is never used again.
event = sa.Table(
    "celeriac_event",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("record_id", _Id, nullable=False),
    sa.Column(
        "kind", sa.Text, nullable=False
    ),  # state, progress, value, cancel; forget (data: the task's id)
    sa.Column("data", sa.Text, nullable=False),  # JSON
    sa.Column("at", sa.Float, nullable=False),  # epoch seconds
)
sa.Index("celeriac_event_record", event.c.record_id, event.c.id)

# Idempotency keys: which task was started for a request, until when nobody else may start another one for it.
idempotency_key = sa.Table(
    "celeriac_key",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("claimed_at", sa.Float, nullable=False),  # epoch seconds
    sa.Column("expires_at", sa.Float, nullable=False),  # epoch seconds
    sqlite_with_rowid=False,
)
sa.Index("celeriac_key_expires", idempotency_key.c.expires_at)

# Tasks whose records have expired, until that is forgotten, too.
expired_record = sa.Table(
    "celeriac_expired",
    metadata,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("at", sa.Float, nullable=False),  # epoch seconds
    sa.Column("until", sa.Float, nullable=False),  # epoch seconds
    sqlite_with_rowid=False,
)
sa.Index("celeriac_expired_until", expired_record.c.until)

# Revoked tasks whose records are gone: their messages may wait somewhere.
cancel_mark = sa.Table(
    "celeriac_cancelled",
    metadata,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("until", sa.Float, nullable=False),  # epoch seconds
    sqlite_with_rowid=False,
)
sa.Index("celeriac_cancelled_until", cancel_mark.c.until)

# Beat's memory, one row for each entry of the schedule: the entries themselves are in the app's configuration.
schedule = sa.Table(
    "celeriac_schedule",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("last_run_at", sa.Float, nullable=False),  # epoch seconds; of a new entry, when it began
    sa.Column("total_run_count", sa.Integer, nullable=False, default=0),
)

# Who does what only one process may do, under a lease that it renews.
leader = sa.Table(
    "celeriac_leader",
    metadata,
    sa.Column("role", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("renewed_at", sa.Float, nullable=False),  # epoch seconds
    sa.Column("lease", sa.Float, nullable=False),  # seconds after that for which it holds
)
