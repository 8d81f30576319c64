"""Tasks whose records have expired, in the database, inside a transaction. Times are epoch seconds.

Nothing is written here when a task is started anew: a row of a task that has a record says nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.batch import dump
from celeriac.sql.functions import strings
from celeriac.sql.tables import expired_record, task_record

__all__ = ["Expired", "fetch", "forget", "remember", "trim"]

_gone = expired_record.c
_record = task_record.c
_now = sa.bindparam("now", type_=sa.Float())
_kept = sa.bindparam("kept", type_=sa.Float())


class Expired(NamedTuple):
    """A task whose record has expired, whose it was, and when."""

    task_id: str
    owner: str | None
    at: float


_numbers = sa.select(sa.cast(strings("ids").subquery().c.value, sa.BigInteger()))
_among = _record.id.in_(_numbers)
_again = sa.delete(expired_record).where(_gone.task_id.in_(sa.select(_record.task_id).where(_among)))
_remember = sa.insert(expired_record).from_select(
    ["task_id", "owner", "at", "until"],
    sa.select(
        _record.task_id, _record.owner, sa.func.coalesce(_record.finished_at + _kept, _now), _now + _kept
    ).where(_among),
)


def remember(connection: Connection, record_ids: Collection[int], now: float, kept: float) -> None:
    """Remember records, by their numbers, which were kept for so many seconds, for as long again."""
    ids = {"ids": dump(record_ids)}
    connection.execute(_again, ids)
    connection.execute(_remember, {**ids, "now": now, "kept": kept})


_fetch = sa.select(_gone.task_id, _gone.owner, _gone.at).where(
    _gone.task_id.in_(strings("ids")),
    _gone.until > _now,
    ~sa.exists().where(_record.task_id == _gone.task_id),
)


def fetch(connection: Connection, task_ids: Iterable[str], now: float) -> list[Expired]:
    """Those of these tasks whose records have expired, and that were not started anew."""
    return [Expired(*row) for row in connection.execute(_fetch, {"ids": dump(task_ids), "now": now})]


_forget = sa.delete(expired_record).where(_gone.task_id.in_(strings("ids")))


def forget(connection: Connection, task_ids: Iterable[str]) -> None:
    """Leave no trace of these tasks."""
    connection.execute(_forget, {"ids": dump(task_ids)})


_old = sa.select(_gone.task_id).where(_gone.until <= _now).limit(sa.bindparam("limit", type_=sa.Integer()))
_trim = sa.delete(expired_record).where(_gone.task_id.in_(_old))


def trim(connection: Connection, now: float, limit: int) -> int:
    """Forget up to ``limit`` of those that have been remembered for long enough. Returns how many."""
    return connection.execute(_trim, {"now": now, "limit": limit}).rowcount
