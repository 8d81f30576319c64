"""Revoked tasks whose records are gone, in the database, inside a transaction. Times are epoch seconds.

A mark of a task that has a record says nothing: the record does.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.functions import strings
from celeriac.sql.tables import cancel_mark, task_record

__all__ = ["keep", "kept", "trim"]

#: Seconds that a revoked task is remembered as such when its record is gone.
_KEPT = 30 * 86_400.0

_mark = cancel_mark.c
_record = task_record.c
_now = sa.bindparam("now", type_=sa.Float())
_has_record = sa.exists().where(_record.task_id == _mark.task_id)

#: The ids among ``ids``, a JSON array, of those that are remembered.
kept = sa.select(_mark.task_id).where(_mark.task_id.in_(strings("ids")), ~_has_record)


def keep(connection: Connection, task_ids: str, now: float) -> None:
    """Remember which of these tasks (a JSON array of ids), whose records are about to go, are revoked."""
    connection.execute(_clear, {"ids": task_ids})
    connection.execute(_keep, {"ids": task_ids, "until": now + _KEPT})


_clear = sa.delete(cancel_mark).where(_mark.task_id.in_(strings("ids")), _has_record)
_keep = sa.insert(cancel_mark).from_select(
    ["task_id", "until"],
    sa.select(_record.task_id, sa.bindparam("until", type_=sa.Float())).where(
        _record.task_id.in_(strings("ids")), _record.status == sa.literal_column("'REVOKED'")
    ),
)

_old = sa.select(_mark.task_id).where(_mark.until <= _now).limit(sa.bindparam("limit", type_=sa.Integer()))
_trim = sa.delete(cancel_mark).where(_mark.task_id.in_(_old))


def trim(connection: Connection, now: float, limit: int) -> int:
    """Forget up to ``limit`` of those that have been remembered for long enough. Returns how many."""
    return connection.execute(_trim, {"now": now, "limit": limit}).rowcount
