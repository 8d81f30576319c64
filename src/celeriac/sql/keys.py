"""Idempotency keys in the database, inside a transaction. Times are epoch seconds."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.tables import idempotency_key

__all__ = ["Held", "claim", "release", "trim"]

_key = idempotency_key.c


class Held(NamedTuple):
    """Whose a key is, and since when."""

    task_id: str
    fingerprint: str
    at: float


_CLAIM = """
INSERT INTO celeriac_key AS held (name, fingerprint, task_id, claimed_at, expires_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET
  fingerprint = excluded.fingerprint, task_id = excluded.task_id,
  claimed_at = excluded.claimed_at, expires_at = excluded.expires_at
WHERE held.expires_at <= excluded.claimed_at
"""
_name = _key.name == sa.bindparam("key", type_=sa.Text())
_held = sa.select(_key.task_id, _key.fingerprint, _key.claimed_at).where(_name)


def claim(
    connection: Connection, key: str, fingerprint: str, task_id: str, now: float, expires: float
) -> Held:
    """Take a key that is free or has expired, for so many seconds; whose it is now."""
    connection.exec_driver_sql(_CLAIM, (key, fingerprint, task_id, now, now + expires))
    return Held(*connection.execute(_held, {"key": key}).one())


_release = sa.delete(idempotency_key).where(_name, _key.task_id == sa.bindparam("task", type_=sa.Text()))


def release(connection: Connection, key: str, task_id: str) -> None:
    """Free a key, if it still is this task's."""
    connection.execute(_release, {"key": key, "task": task_id})


_expired = (
    sa.select(_key.name)
    .where(_key.expires_at <= sa.bindparam("now", type_=sa.Float()))
    .limit(sa.bindparam("limit", type_=sa.Integer()))
)
_trim = sa.delete(idempotency_key).where(_key.name.in_(_expired))


def trim(connection: Connection, now: float, limit: int) -> int:
    """Delete up to ``limit`` keys that have expired. Returns how many."""
    return connection.execute(_trim, {"now": now, "limit": limit}).rowcount
