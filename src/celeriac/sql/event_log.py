"""The events as one log: what is new since a position in it, and what is too old to keep.

A position is the id of an event. SQLite has one writer at a time, so events become visible in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql import gone, marks
from celeriac.sql.batch import dump
from celeriac.sql.functions import gather_bytes, json_field, load_bytes, strings
from celeriac.sql.tables import event, task_record

__all__ = ["Change", "changes", "end", "trim_orphans", "trim_records"]


class Change(NamedTuple):
    """One event in the log: ``kind`` as in the table; ``state`` for a ``state`` event."""

    id: int
    task_id: str | None
    kind: str
    state: str | None


_end = sa.select(sa.func.coalesce(sa.func.max(event.c.id), 0))


def end(connection: Connection) -> int:
    """The position behind all that has happened."""
    position: int = connection.execute(_end).scalar_one()
    return position


_is_state = event.c.kind == sa.literal_column("'state'")
_is_forget = event.c.kind == sa.literal_column("'forget'")
_is_cancel = event.c.kind == sa.literal_column("'cancel'")

_changes = (
    sa.select(
        event.c.id,
        sa.case((_is_forget, event.c.data), else_=task_record.c.task_id).label("task_id"),
        event.c.kind,
        sa.case((_is_state, json_field(event.c.data, "state"))).label("state"),
    )
    .select_from(event)
    .outerjoin(task_record, task_record.c.id == event.c.record_id)
    .where(event.c.id > sa.bindparam("after", type_=sa.BigInteger()))
    .order_by(event.c.id)
    .limit(sa.bindparam("limit", type_=sa.Integer()))
)
_names = Change._fields
_all_changes = gather_bytes(_changes.subquery(), *_names)
_cancels = gather_bytes(_changes.where(_is_cancel).subquery(), *_names)
_changes_of = gather_bytes(
    _changes.where(
        sa.or_(
            _is_cancel,
            task_record.c.task_id.in_(strings("ids")),
            sa.and_(_is_forget, event.c.data.in_(strings("ids"))),
        )
    ).subquery(),
    *_names,
)


def changes(
    connection: Connection, after: int, task_ids: Collection[str] | None, limit: int
) -> tuple[list[Change], int]:
    """The first ``limit`` events after a position, and the position behind them.

    Of these tasks only, or of all for ``None``; everybody's cancellations are always among them.
    """
    # Read first, in the same snapshot: when fewer than the limit are found, there is nothing else before it.
    behind = end(connection)
    parameters = {"after": after, "limit": limit}
    if task_ids is None:
        result = connection.execute(_all_changes, parameters)
    elif task_ids:
        result = connection.execute(_changes_of, {**parameters, "ids": dump(task_ids)})
    else:
        result = connection.execute(_cancels, parameters)
    found = [Change(*row) for row in load_bytes(result.scalar())]
    return found, found[-1].id if len(found) >= limit else max(behind, after)


_expired_records = (
    sa.select(task_record.c.id, task_record.c.task_id)
    .where(task_record.c.date_done < sa.bindparam("before", type_=sa.DateTime()))
    .order_by(task_record.c.date_done)
    .limit(sa.bindparam("limit", type_=sa.Integer()))
)


def trim_records(connection: Connection, now: float, kept: float, limit: int) -> int:
    """Delete up to ``limit`` records that ended more than ``kept`` seconds ago, and their events.

    That they have expired is remembered for as long again. Returns how many records went.
    """
    moment = datetime.fromtimestamp(now - kept, UTC).replace(tzinfo=None)
    expired = connection.execute(_expired_records, {"before": moment, "limit": limit}).all()
    if not expired:
        return 0
    record_ids, task_ids = zip(*expired, strict=True)
    gone.remember(connection, record_ids, now, kept)
    marks.keep(connection, dump(task_ids), now)
    ids = {"ids": dump(record_ids)}
    numbers = sa.select(sa.cast(strings("ids").subquery().c.value, sa.BigInteger()))
    newest = sa.select(sa.func.max(event.c.id)).scalar_subquery()
    connection.execute(sa.delete(event).where(event.c.record_id.in_(numbers), event.c.id < newest), ids)
    return connection.execute(sa.delete(task_record).where(task_record.c.id.in_(numbers)), ids).rowcount


_window = (
    sa.select(event.c.id, event.c.record_id, event.c.at)
    .where(event.c.id > sa.bindparam("after", type_=sa.BigInteger()))
    .order_by(event.c.id)
    .limit(sa.bindparam("limit", type_=sa.Integer()))
    .subquery()
)
_window_end = sa.select(sa.func.max(_window.c.id))
_orphans = sa.delete(event).where(
    event.c.id.in_(
        sa.select(_window.c.id)
        .outerjoin(task_record, task_record.c.id == _window.c.record_id)
        .where(task_record.c.id.is_(None), _window.c.at < sa.bindparam("before", type_=sa.Float()))
    ),
    event.c.id < _end.scalar_subquery(),
)


def trim_orphans(connection: Connection, before: float, after: int, limit: int) -> int:
    """Delete, among the ``limit`` events after a position, those whose record is gone and that are older than a time.

    Returns the position to go on from next time; 0 at the end of the log.
    """
    window_end: int | None = connection.execute(_window_end, {"after": after, "limit": limit}).scalar()
    if window_end is None:
        return 0
    connection.execute(_orphans, {"after": after, "limit": limit, "before": before})
    return window_end
