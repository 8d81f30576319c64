"""Messages in the database: what a broker does to them, batch by batch, inside a write transaction.

The asyncio broker (through :class:`celeriac.sql.database.Database`) and the kombu transport (through
:func:`celeriac.sql.engine.write`) both stand on these functions, so that they share queues, leases and dead
letters.

A message is READY, LEASED until ``due``, DELAYED until ``due``, or DEAD since ``due``. What is due becomes
READY when somebody takes: there is no process that must run for it. Ready messages are read in order from an
index that holds nothing else, so that a long queue costs no more than a short one.

A *tag* names one delivery: the message's id and how often it has been leased or put back. It is void as soon
as anything else has happened to the message. A lease that has merely run out makes no tag void: until
somebody else takes the message, the first consumer can still settle or renew it.

Times are seconds since the epoch, leases are seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain, islice, zip_longest
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql import batch
from celeriac.sql.batch import (
    byte_length,
    dump,
    elements,
    gather,
    gather_one,
    integer,
    itself,
    joined,
    leading_integer,
    load,
    number,
    text,
)
from celeriac.sql.tables import (
    DELAYED,
    LEASED,
    READY,
    is_dead,
    is_delayed,
    is_leased,
    is_moving,
    is_ready,
    message,
)

__all__ = [
    "Buried",
    "Draft",
    "Ending",
    "Taken",
    "Waiting",
    "dead_letters",
    "delayed",
    "drop_expired",
    "has_ready",
    "insert",
    "next_due",
    "purge",
    "renew",
    "replay",
    "settle",
    "size",
    "take",
]

#: How many due messages one ``take`` makes READY at most, so that it never holds the write lock for long.
_PROMOTE_LIMIT = 1000


class Draft(NamedTuple):
    """A message to insert. ``due`` delays its delivery; ``expires`` is when it may be dropped undelivered."""

    queue: str
    envelope: str
    priority: int = 0
    due: float | None = None
    task_id: str = ""
    task: str = ""
    expires: float | None = None


class Taken(NamedTuple):
    """A message under a fresh lease. ``deliveries`` counts this one; ``envelope`` is UTF-8."""

    tag: str
    queue: str
    deliveries: int
    envelope: bytes


class Ending(NamedTuple):
    """The end of a delivery: ``state`` is what becomes of the message; ``None`` deletes it.

    READY puts it back at its old place, DELAYED until ``due``, DEAD for ``reason`` at the time ``due``. With
    ``counted`` false the delivery count goes back by one.
    """

    tag: str
    state: int | None = None
    due: float | None = None
    counted: bool = True
    reason: str | None = None


class Buried(NamedTuple):
    """A dead letter. ``at`` is its time of death."""

    id: int
    queue: str
    task_id: str
    task: str
    reason: str
    deliveries: int
    at: float
    envelope: bytes


class Waiting(NamedTuple):
    """A message that waits for its time, in epoch seconds."""

    queue: str
    due: float
    envelope: str


_batch = elements("batch")
_ids = sa.select(leading_integer(_batch))  # of ids or of tags
_now = sa.bindparam("now", type_=sa.Float())
_limit = sa.bindparam("limit", type_=sa.Integer())
_of_queue = message.c.queue == sa.bindparam("queue", type_=sa.Text())

_columns = (
    "queue",
    "envelope",
    "priority",
    "due",
    "task_id",
    "task",
    "expires",
    "state",
    "deliveries",
    "leases",
)


def insert(connection: Connection, drafts: Iterable[Draft]) -> None:
    """Insert messages; ids, and so the order of delivery, follow the order of the drafts."""
    rows = [(*draft, READY if draft.due is None else DELAYED, 0, 0) for draft in drafts]
    batch.insert(connection, message, _columns, rows)


def _promoting(*among: sa.ColumnElement[bool]) -> sa.Update:
    due = (
        sa.select(message.c.id)
        .where(is_moving, *among, message.c.due <= _now)
        .order_by(message.c.due)
        .limit(_limit)
        .with_for_update(skip_locked=True)
        .correlate(None)
    )
    return (
        sa.update(message)
        .where(message.c.id.in_(due))
        .values(state=sa.literal_column(str(READY)), due=sa.null())
    )


_promote = _promoting()
_promote_delayed = _promoting(is_delayed)
_candidates = gather_one(
    sa.select(message.c.id)
    .where(_of_queue, is_ready)
    .order_by(message.c.priority.desc(), message.c.id)
    .limit(_limit)
    .with_for_update(skip_locked=True)
    .subquery()
)
_lease = (
    sa.update(message)
    .where(message.c.id.in_(_ids))
    .values(
        state=sa.literal_column(str(LEASED)),
        due=sa.bindparam("until", type_=sa.Float()),
        deliveries=message.c.deliveries + sa.literal_column("1"),
        leases=message.c.leases + sa.literal_column("1"),
    )
)
_leased_rows = (
    sa.select(
        message.c.id,
        message.c.leases,
        message.c.queue,
        message.c.deliveries,
        message.c.envelope,
        byte_length(message.c.envelope).label("length"),
    )
    .where(message.c.id.in_(_ids))
    .subquery()
)
# Envelopes come back as one value beside the JSON, not within it: no escapes to write and to read.
_contents = gather(_leased_rows, "id", "leases", "queue", "deliveries", "length").add_columns(
    joined(_leased_rows.c.envelope)
)


def _round_robin(by_queue: list[list[int]], limit: int) -> list[int]:
    turns = chain.from_iterable(zip_longest(*by_queue))
    return list(islice((id_ for id_ in turns if id_ is not None), limit))


def take(
    connection: Connection,
    queues: Sequence[str],
    limit: int,
    lease: float,
    now: float,
    *,
    spare_leases: bool = False,
) -> list[Taken]:
    """Lease up to ``limit`` messages, fairly from all queues, after making READY what is due.

    ``spare_leases``: leave those whose lease has ended to their holders, for now.

    Each queue gives its highest priority first, then its oldest. The queues named first give one message more
    than the others when the limit cannot be divided, so a caller rotates them from call to call.
    """
    promote = _promote_delayed if spare_leases else _promote
    connection.execute(promote, {"now": now, "limit": _PROMOTE_LIMIT})
    by_queue = [
        load(connection.execute(_candidates, {"queue": queue, "limit": limit}).scalar())
        for queue in dict.fromkeys(queues)
    ]
    ids = by_queue[0] if len(by_queue) == 1 else _round_robin(by_queue, limit)
    if not ids:
        return []
    parameters = {"batch": dump(ids), "until": now + lease}
    connection.execute(_lease, parameters)
    rows, envelopes = connection.execute(_contents, parameters).one()
    taken: dict[int, Taken] = {}
    end = 0
    for id_, leases, queue, deliveries, length in load(rows):
        start, end = end, end + length
        taken[id_] = Taken(f"{id_}.{leases}", queue, deliveries, envelopes[start:end])
    return [taken[id_] for id_ in ids]


_tag = sa.cast(message.c.id, sa.Text) + sa.literal_column("'.'") + sa.cast(message.c.leases, sa.Text)
_held = gather_one(
    sa.select(itself(_batch).label("tag"))
    .join_from(_batch, message, message.c.id == leading_integer(_batch))
    .where(_tag == itself(_batch), sa.or_(is_leased, is_ready))
    .with_for_update(of=message)
    .subquery()
)


def _void(connection: Connection, tags: Collection[str]) -> set[str]:
    held = load(connection.execute(_held, {"batch": dump(tags)}).scalar())
    return set(tags).difference(held)


_delete = sa.delete(message).where(message.c.id.in_(_ids))
_put_back = (
    sa.update(message)
    .where(message.c.id == integer(_batch, 0))
    .values(
        state=integer(_batch, 1),
        due=number(_batch, 2),
        deliveries=message.c.deliveries - integer(_batch, 3),
        reason=text(_batch, 4),
        leases=message.c.leases + sa.literal_column("1"),
    )
)


def settle(connection: Connection, endings: Sequence[Ending]) -> set[str]:
    """End deliveries. Returns the tags that were void; nothing has happened to their messages."""
    void = _void(connection, [ending.tag for ending in endings])
    # Of two endings of one delivery the first counts.
    valid = {ending.tag: ending for ending in reversed(endings) if ending.tag not in void}.values()
    deleted = [ending.tag for ending in valid if ending.state is None]
    if deleted:
        connection.execute(_delete, {"batch": dump(deleted)})
    put_back = [
        (int(ending.tag.partition(".")[0]), ending.state, ending.due, int(not ending.counted), ending.reason)
        for ending in valid
        if ending.state is not None
    ]
    if put_back:
        connection.execute(_put_back, {"batch": dump(put_back)})
    return void


_renew = (
    sa.update(message)
    .where(message.c.id.in_(_ids))
    .values(state=sa.literal_column(str(LEASED)), due=sa.bindparam("until", type_=sa.Float()))
)


def renew(connection: Connection, tags: Sequence[str], lease: float, now: float) -> set[str]:
    """Start the leases of these deliveries anew. Returns the tags that were void."""
    void = _void(connection, tags)
    held = [tag for tag in tags if tag not in void]
    if held:
        connection.execute(_renew, {"batch": dump(held), "until": now + lease})
    return void


_count_ready = sa.select(sa.func.count()).select_from(message).where(_of_queue, is_ready)
_count_due = (
    sa.select(sa.func.count()).select_from(message).where(is_moving, message.c.due <= _now, _of_queue)
)


def size(connection: Connection, queue: str, now: float) -> int:
    """How many messages wait to be delivered now. Fits a read transaction."""
    parameters = {"queue": queue, "now": now}
    ready: int = connection.execute(_count_ready, parameters).scalar_one()
    due: int = connection.execute(_count_due, parameters).scalar_one()
    return ready + due


_later = (
    sa.select(message.c.queue, message.c.due, message.c.envelope)
    .where(is_moving, is_delayed, message.c.due > _now, _of_queue)
    .order_by(message.c.due, message.c.id)
    .limit(sa.bindparam("limit"))
)


def delayed(connection: Connection, queue: str, limit: int, now: float) -> list[Waiting]:
    """What waits for its time, the earliest first. Fits a read transaction."""
    found = connection.execute(_later, {"queue": queue, "limit": max(0, limit), "now": now})
    return [Waiting(*row) for row in found]


_any_ready = sa.select(sa.exists(sa.select(message.c.id).where(_of_queue, is_ready)))
_any_due = sa.select(sa.exists(sa.select(message.c.id).where(is_moving, message.c.due <= _now)))
_min_due = sa.select(sa.func.min(message.c.due)).where(is_moving)


def has_ready(connection: Connection, queues: Sequence[str], now: float) -> bool:
    """Whether a ``take`` could find something; other queues can make it true. Fits a read transaction."""
    if connection.execute(_any_due, {"now": now}).scalar_one():
        return True
    return any(connection.execute(_any_ready, {"queue": queue}).scalar_one() for queue in queues)


def next_due(connection: Connection) -> float | None:
    """When the next delay or lease of any queue ends. Fits a read transaction."""
    due: float | None = connection.execute(_min_due).scalar()
    return due


_purge_ready = sa.delete(message).where(
    message.c.id.in_(sa.select(message.c.id).where(_of_queue, is_ready).limit(_limit).correlate(None))
)
_gone = sa.or_(is_delayed, message.c.due <= _now)
_purge_moving = sa.delete(message).where(
    message.c.id.in_(sa.select(message.c.id).where(is_moving, _of_queue, _gone).limit(_limit).correlate(None))
)


def purge(connection: Connection, queue: str, now: float, limit: int = 2**31 - 1) -> int:
    """Delete waiting and delayed messages of a queue, not the leased and the dead. Returns how many.

    At most ``limit``: a transaction that deletes a million keeps everybody waiting for many seconds.
    """
    parameters = {"queue": queue, "now": now, "limit": limit}
    gone = connection.execute(_purge_ready, parameters).rowcount
    if gone < limit:
        gone += connection.execute(_purge_moving, {**parameters, "limit": limit - gone}).rowcount
    return gone


_buried_columns = ("id", "queue", "task_id", "task", "reason", "deliveries", "due")
_buried = (
    sa.select(
        *(message.c[name] for name in _buried_columns),
        message.c.envelope,
        byte_length(message.c.envelope).label("length"),
    )
    .where(is_dead)
    .order_by(message.c.due.desc(), message.c.id.desc())
    .limit(_limit)
)


def _gather_buried(rows: sa.Subquery) -> sa.Select[Any]:
    # Beside the JSON, which cannot hold what somebody else has written and is no text.
    return gather(rows, *_buried_columns, "length").add_columns(joined(rows.c.envelope))


_buried_all = _gather_buried(_buried.subquery())
_buried_of_queue = _gather_buried(_buried.where(_of_queue).subquery())


def dead_letters(connection: Connection, queue: str | None, limit: int) -> list[Buried]:
    """The dead letters of one queue, or of all, newest first. Fits a read transaction."""
    if queue is None:
        result = connection.execute(_buried_all, {"limit": limit})
    else:
        result = connection.execute(_buried_of_queue, {"queue": queue, "limit": limit})
    rows, envelopes = result.one()
    buried: list[Buried] = []
    end = 0
    for id_, queue_, task_id, task, reason, deliveries, at, length in load(rows):
        start, end = end, end + length
        buried.append(Buried(id_, queue_, task_id, task, reason, deliveries, at, envelopes[start:end]))
    return buried


_replay = (
    sa.update(message)
    .where(message.c.id.in_(_ids), is_dead)
    .values(
        state=sa.literal_column(str(READY)),
        due=sa.null(),
        deliveries=sa.literal_column("0"),
        reason=sa.null(),
        leases=message.c.leases + sa.literal_column("1"),
    )
)


def replay(connection: Connection, ids: Sequence[int]) -> int:
    """Make dead letters READY again with a fresh delivery count. Returns how many were found."""
    return connection.execute(_replay, {"batch": dump(ids)}).rowcount


_drop_expired = sa.delete(message).where(
    message.c.expires.is_not(None), message.c.expires <= _now, sa.not_(is_leased), sa.not_(is_dead)
)


def drop_expired(connection: Connection, now: float) -> int:
    """Delete messages that have expired undelivered. Returns how many."""
    return connection.execute(_drop_expired, {"now": now}).rowcount
