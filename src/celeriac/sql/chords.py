"""Chords in the database, inside a transaction: how many parts each has, and those that are done.

The semantics are those of :mod:`celeriac.stores.chords`. The asyncio store and the synchronous backend run the same
statements, so that workers of either kind count one chord. A part's ``result`` is JSON.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.batch import dump
from celeriac.sql.functions import decoded, gather_bytes, load_bytes, strings
from celeriac.sql.tables import chord, chord_part, task_group
from celeriac.sql.transitions import execute_batch

__all__ = ["Claim", "Part", "add_parts", "claimed", "extend", "finish", "set_size", "trim"]

#: Where a part without an index goes: behind the others. Also keeps NULL, which is like nothing, out of a unique index.
_LAST = 2**31 - 1

_GROUP_ID = sa.bindparam("gid", type_=sa.Text())
_TOKEN = sa.bindparam("its_token", type_=sa.Text())
_NOW = sa.bindparam("now", type_=sa.Float())


class Part(NamedTuple):
    """A part that is done, and its place in the header."""

    group_id: str
    task_id: str
    place: int | None
    state: str
    result: str


class Claim(NamedTuple):
    """A complete chord, its parts in order, and what was saved of the header's structure."""

    group_id: str
    token: str
    parts: list[Part]
    header: str | None


_SET_SIZE = """
INSERT INTO celeriac_chord (group_id, size, changed_at) VALUES (?, ?, ?)
ON CONFLICT (group_id) DO UPDATE SET
  size = excluded.size, token = NULL, claimed_until = NULL, done = 0, changed_at = excluded.changed_at
"""


def set_size(connection: Connection, group_id: str, size: int, now: float) -> None:
    """Say how many parts a chord has: a new run of it."""
    connection.exec_driver_sql(_SET_SIZE, (group_id, size, now))


_EXTEND = """
INSERT INTO celeriac_chord AS chord (group_id, extended, changed_at) VALUES (?, ?, ?)
ON CONFLICT (group_id) DO UPDATE SET
  extended = chord.extended + excluded.extended, changed_at = excluded.changed_at
"""


def extend(connection: Connection, group_id: str, by: int, now: float) -> None:
    """So many parts more."""
    connection.exec_driver_sql(_EXTEND, (group_id, by, now))


# The parts are counted as they come: counting what is there, at every batch, would take ever longer.
_COUNT = """
INSERT INTO celeriac_chord AS chord (group_id, returned, changed_at)
SELECT batch.group_id, count(*), max(batch.at)
FROM ({batch}) AS batch LEFT JOIN celeriac_chord_part AS part
  ON part.group_id = batch.group_id AND part.task_id = batch.task_id AND part.place = batch.place
WHERE part.id IS NULL
GROUP BY batch.group_id
ON CONFLICT (group_id) DO UPDATE SET
  returned = chord.returned + excluded.returned, changed_at = excluded.changed_at
WHERE chord.done = 0
"""
_COUNTED = ("group_id", "task_id", "place", "at")

_INSERT = """
INSERT INTO celeriac_chord_part (group_id, task_id, place, state, result)
SELECT batch.group_id, batch.task_id, batch.place, batch.state, batch.value
FROM ({batch}) AS batch JOIN celeriac_chord AS chord ON chord.group_id = batch.group_id
WHERE chord.done = 0
ON CONFLICT (group_id, task_id, place) DO NOTHING
"""
_INSERTED = ("group_id", "task_id", "place", "state", "value")

_claim = (
    sa.update(chord)
    .where(
        chord.c.group_id.in_(strings("ids")),
        chord.c.done == sa.literal_column("0"),
        chord.c.returned == chord.c.size + chord.c.extended,
        sa.or_(chord.c.token.is_(None), chord.c.claimed_until <= _NOW),
    )
    .values(token=_TOKEN, claimed_until=sa.bindparam("until", type_=sa.Float()))
    .returning(chord.c.group_id)
)


def add_parts(connection: Connection, parts: Iterable[Part], now: float, claim_for: float) -> list[Claim]:
    """Add parts, each once, and claim for so many seconds the chords that are complete and not claimed."""
    rows = {
        (group_id, task_id, _LAST if place is None else place): (state, result)
        for group_id, task_id, place, state, result in parts
    }
    execute_batch(connection, _COUNT, _COUNTED, [(*key, now) for key in rows])
    execute_batch(connection, _INSERT, _INSERTED, [(*key, *value) for key, value in rows.items()])
    token = uuid4().hex
    ids = dump({group_id for group_id, *_ in rows})
    found = connection.execute(_claim, {"ids": ids, "now": now, "its_token": token, "until": now + claim_for})
    return _claims(connection, list(found.scalars()), token)


_parts = gather_bytes(
    sa.select(chord_part)
    .where(chord_part.c.group_id.in_(strings("ids")))
    .order_by(chord_part.c.place, chord_part.c.id)
    .subquery(),
    *("group_id", "task_id", "place", "state", "result"),
)
_headers = sa.select(task_group.c.taskset_id, decoded(task_group.c.result)).where(
    task_group.c.taskset_id.in_(strings("ids"))
)


def _claims(connection: Connection, group_ids: Sequence[str], token: str) -> list[Claim]:
    if not group_ids:
        return []
    ids = {"ids": dump(group_ids)}
    headers: dict[str, str] = {row[0]: row[1] for row in connection.execute(_headers, ids)}
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    for group_id, task_id, place, state, result in load_bytes(connection.execute(_parts, ids).scalar()):
        known = None if place == _LAST else place
        parts[group_id].append(Part(group_id, task_id, known, state, result))
    return [Claim(group_id, token, parts[group_id], headers.get(group_id)) for group_id in group_ids]


_claimed = sa.select(chord.c.group_id).where(
    chord.c.group_id.in_(strings("ids")), chord.c.token.is_not(None), chord.c.claimed_until > _NOW
)


def claimed(connection: Connection, group_ids: Collection[str], now: float) -> set[str]:
    """Which of these chords are claimed now."""
    return set(connection.execute(_claimed, {"ids": dump(group_ids), "now": now}).scalars())


_finish = (
    sa.update(chord)
    .where(chord.c.group_id == _GROUP_ID, chord.c.token == _TOKEN)
    .values(done=1, size=None, extended=0, returned=0, token=None, claimed_until=None, changed_at=_NOW)
)
_forget_parts = sa.delete(chord_part).where(chord_part.c.group_id == _GROUP_ID)


def finish(connection: Connection, group_id: str, token: str, now: float) -> bool:
    """Forget a chord's parts, and remember that it is done. False when the claim is somebody else's now."""
    values: dict[str, Any] = {"gid": group_id, "its_token": token, "now": now}
    if not connection.execute(_finish, values).rowcount:
        return False
    connection.execute(_forget_parts, {"gid": group_id})
    return True


_expired = (
    sa.select(chord.c.group_id)
    .where(
        chord.c.changed_at < sa.bindparam("done_before", type_=sa.Float()),
        sa.or_(
            chord.c.done == sa.literal_column("1"),
            chord.c.changed_at < sa.bindparam("before", type_=sa.Float()),
        ),
    )
    .limit(sa.bindparam("limit", type_=sa.Integer()))
)
_among = chord.c.group_id.in_(strings("ids"))
_parts_among = chord_part.c.group_id.in_(strings("ids"))


def trim(connection: Connection, done_before: float, before: float | None, limit: int) -> int:
    """Forget up to ``limit`` chords: those done before the one time, others that have not changed since the other.

    Returns how many went.
    """
    oldest = float("-inf") if before is None else before
    values = {"done_before": max(done_before, oldest), "before": oldest, "limit": limit}
    group_ids = list(connection.execute(_expired, values).scalars())
    if group_ids:
        ids = {"ids": dump(group_ids)}
        connection.execute(sa.delete(chord_part).where(_parts_among), ids)
        connection.execute(sa.delete(chord).where(_among), ids)
    return len(group_ids)
