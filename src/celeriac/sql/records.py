"""Records and events in the database, inside a transaction: what a store asks, beside the transitions.

Ids of tasks go in as one JSON parameter, and rows come back as one value; :mod:`celeriac.sql.batch` says why.
Rows are lists in the order of ``RECORD_COLUMNS`` and ``EVENT_COLUMNS``, with times in microseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql import gone, marks
from celeriac.sql.batch import dump
from celeriac.sql.functions import decoded, gather_bytes, load_bytes, micros, strings
from celeriac.sql.tables import event, is_unsuccessful, task_record
from celeriac.sql.transitions import execute_batch
from celeriac.sql.triggers import attempts_after

__all__ = [
    "EVENT_COLUMNS",
    "RECORD_COLUMNS",
    "append_events",
    "cancelled",
    "events",
    "fetch",
    "forget",
    "page",
    "request_cancel",
]

_record = task_record.c
_is_ready = _record.status.in_(
    [sa.literal_column(f"'{state}'") for state in ("SUCCESS", "FAILURE", "REVOKED")]
)
_among = _record.task_id.in_(strings("ids"))
_ids_among = sa.select(_record.id).where(_among)
_now = sa.bindparam("now", type_=sa.Float())
_limit = sa.bindparam("limit", type_=sa.Integer())

RECORD_COLUMNS: Mapping[str, sa.ColumnElement[Any]] = {
    "number": _record.id,
    "task_id": _record.task_id,
    "state": _record.status,
    "name": _record.name,
    "queue": _record.queue,
    "args": decoded(_record.args),
    "kwargs": decoded(_record.kwargs),
    "owner": _record.owner,
    "root_id": _record.root_id,
    "parent_id": _record.parent_id,
    "group_id": _record.group_id,
    "enqueued_at": micros(_record.enqueued_at),
    "eta": micros(_record.eta),
    "expires": micros(_record.expires_at),
    "started_at": micros(_record.started_at),
    "finished_at": micros(_record.finished_at),
    "date_done": sa.cast(_record.date_done, sa.Text()),
    "retries": _record.retries,
    "worker": _record.worker,
    "attempts": _record.attempts,
    "progress": _record.progress,
    "result": decoded(_record.result),
    "traceback": _record.traceback,
    "children": decoded(_record.children),
    "cancel_requested_at": micros(_record.cancel_requested_at),
}

EVENT_COLUMNS: Mapping[str, sa.ColumnElement[Any]] = {
    "id": event.c.id,
    "task_id": _record.task_id,
    "kind": event.c.kind,
    "data": event.c.data,
    "at": micros(event.c.at),
}


def _labelled(columns: Mapping[str, sa.ColumnElement[Any]]) -> sa.Select[Any]:
    return sa.select(*(column.label(name) for name, column in columns.items()))


_fetch = gather_bytes(_labelled(RECORD_COLUMNS).where(_among).subquery(), *RECORD_COLUMNS)


def fetch(connection: Connection, task_ids: Iterable[str]) -> list[list[Any]]:
    """The records of these tasks, in no order; unknown ids are left out."""
    return load_bytes(connection.execute(_fetch, {"ids": dump(task_ids)}).scalar())


_INSERT_EVENTS = """
INSERT INTO celeriac_event (record_id, kind, data, at)
SELECT record.id, batch.kind, batch.data, batch.at
FROM ({batch}) AS batch CROSS JOIN celery_taskmeta AS record
WHERE record.task_id = batch.task_id
"""

_UPDATE_PROGRESS = """
UPDATE celery_taskmeta SET progress = batch.data FROM ({batch}) AS batch
WHERE celery_taskmeta.task_id = batch.task_id
"""


def append_events(connection: Connection, rows: Sequence[tuple[str, str, str, float]]) -> None:
    """Append events (task id, kind, JSON, epoch seconds); those of unknown tasks are dropped."""
    execute_batch(connection, _INSERT_EVENTS, ("task_id", "kind", "data", "at"), rows)
    progress = {task_id: data for task_id, kind, data, _ in rows if kind == "progress"}
    if progress:
        execute_batch(connection, _UPDATE_PROGRESS, ("task_id", "data"), list(progress.items()))


_events = gather_bytes(
    _labelled(EVENT_COLUMNS)
    .join_from(task_record, event, event.c.record_id == _record.id)
    .where(
        _record.task_id == sa.bindparam("task_id", type_=sa.Text()),
        event.c.id > sa.bindparam("after", type_=sa.BigInteger()),
        event.c.kind.in_([sa.literal_column(f"'{kind}'") for kind in ("state", "progress", "value")]),
    )
    .order_by(event.c.id)
    .limit(_limit)
    .subquery(),
    *EVENT_COLUMNS,
)


def events(connection: Connection, task_id: str, after: int, limit: int) -> list[list[Any]]:
    """Up to ``limit`` events of a task with ids above ``after``, in order."""
    return load_bytes(
        connection.execute(_events, {"task_id": task_id, "after": after, "limit": limit}).scalar()
    )


def page(
    connection: Connection,
    where: Mapping[str, Any],
    *,
    since: float | None = None,
    until: float | None = None,
    search: Collection[str] = (),
    before: int | None = None,
    limit: int,
) -> list[list[Any]]:
    """Up to ``limit`` records, newest first: those whose columns equal ``where``.

    ``since`` and ``until`` bound the time of enqueueing in epoch seconds, the latter exclusively; one of ``search`` is
    a part of the id, the name or the arguments; ``before`` is the number of the last record of the page before.
    """
    select = _labelled(RECORD_COLUMNS)
    for name, value in where.items():
        select = select.where(_record[name] == value)
    if where.get("status", "SUCCESS") != "SUCCESS":
        select = select.where(is_unsuccessful)  # a partial index wants to read its own condition
    if since is not None:
        select = select.where(_record.enqueued_at >= since)
    if until is not None:
        select = select.where(_record.enqueued_at < until)
    if search:
        select = select.where(_contains(search))
    if before is not None:
        select = select.where(_record.id < before)
    rows = select.order_by(_record.id.desc()).limit(limit).subquery()
    return load_bytes(connection.execute(gather_bytes(rows, *RECORD_COLUMNS)).scalar())


def _contains(parts: Iterable[str]) -> sa.ColumnElement[bool]:
    texts = [_record.task_id, _record.name, RECORD_COLUMNS["args"], RECORD_COLUMNS["kwargs"]]
    return sa.or_(*(text.icontains(part, autoescape=True) for text in texts for part in sorted(parts)))


_is_cancelled = sa.or_(
    _record.status == "REVOKED", sa.and_(_record.cancel_requested_at.is_not(None), sa.not_(_is_ready))
)
_cancelled = sa.union_all(sa.select(_record.task_id).where(_among, _is_cancelled), marks.kept)


def cancelled(connection: Connection, task_ids: Iterable[str]) -> set[str]:
    """Which of these tasks are marked as cancelled, or revoked, or were when their records went."""
    return set(connection.execute(_cancelled, {"ids": dump(task_ids)}).scalars())


_waits = _record.status.in_([sa.literal_column("'PENDING'"), sa.literal_column("'RETRY'")])
_revoke = (
    sa.update(task_record)
    .where(_among, _waits)
    .values(
        status="REVOKED",
        result=sa.bindparam("result", type_=sa.LargeBinary()),
        traceback=sa.null(),
        error=sa.bindparam("error", type_=sa.Text()),
        # An attempt that was under way when the record started over is over now.
        attempts=sa.text(
            attempts_after("attempts", status="'REVOKED'", retries="0", worker="''", at="0", error=":error")
        ),
        date_done=sa.bindparam("date_done", type_=sa.DateTime()),
        finished_at=_now,
        changed_at=_now,
        version=sa.func.coalesce(_record.version, 0) + 1,
    )
)


def _marking(scope: sa.ColumnElement[bool]) -> tuple[sa.Select[Any], sa.Insert, sa.Update]:
    unmarked = sa.and_(_among, scope, _record.cancel_requested_at.is_(None))
    rows = sa.select(_record.id, sa.literal_column("'cancel'"), sa.literal_column("'null'"), _now)
    return (
        sa.select(_record.task_id).where(_among, scope),
        sa.insert(event).from_select(["record_id", "kind", "data", "at"], rows.where(unmarked)),
        sa.update(task_record).where(unmarked).values(cancel_requested_at=_now),
    )


_mark_unready = _marking(sa.not_(_is_ready))
_mark_waiting = _marking(_waits)


def request_cancel(
    connection: Connection,
    task_ids: Iterable[str],
    now: float,
    *,
    result: str,
    error: str | None,
    running: bool = True,
) -> set[str]:
    """Mark these tasks as cancelled, and revoke those that wait; ``result`` and ``error`` are what they get.

    Without ``running`` those that run go on unmarked. Returns the ids of those that are marked now.
    """
    select, announce, mark = _mark_unready if running else _mark_waiting
    ids = {"ids": dump(task_ids)}
    found = set(connection.execute(select, ids).scalars())
    if found:
        connection.execute(announce, {**ids, "now": now})
        connection.execute(mark, {**ids, "now": now})
        done = datetime.fromtimestamp(now, UTC).replace(tzinfo=None)
        ending = {"now": now, "result": result.encode(), "error": error, "date_done": done}
        connection.execute(_revoke, {**ids, **ending})
    return found


# Written before the others go, so that the newest event is never deleted.
_announce_forget = sa.insert(event).from_select(
    ["record_id", "kind", "data", "at"],
    sa.select(_record.id, sa.literal_column("'forget'"), _record.task_id, _now).where(_among),
)
_forget_events = sa.delete(event).where(
    event.c.record_id.in_(_ids_among), event.c.kind != sa.literal_column("'forget'")
)
_forget = sa.delete(task_record).where(_among)


def forget(connection: Connection, task_ids: Collection[str], now: float) -> int:
    """Delete records and their events, and tell who watches them. Returns how many records there were."""
    ids = {"ids": dump(task_ids)}
    gone.forget(connection, task_ids)
    marks.keep(connection, ids["ids"], now)
    connection.execute(_announce_forget, {**ids, "now": now})
    connection.execute(_forget_events, ids)
    return connection.execute(_forget, ids).rowcount
