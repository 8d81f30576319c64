"""The bindings of queues to exchanges, as rows, on a connection inside a transaction.

A binding is ``(exchange, routing key, queue, pattern)``; ``celeriac.protocol.exchanges`` says what that means.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.tables import binding, queue

__all__ = ["BoundRow", "Row", "bind", "bound", "exists", "unbind"]

Row = tuple[str, str, str, str]

#: A binding, and its queue's ``expires_after`` and ``message_ttl`` in seconds.
BoundRow = tuple[str, str, str, str, float | None, float | None]

_name = sa.bindparam("the_queue", type_=sa.Text())
_now = sa.bindparam("now", type_=sa.Float())
_exchange = sa.bindparam("the_exchange", type_=sa.Text())
_key = sa.bindparam("the_key", type_=sa.Text())

_of_key = (binding.c.exchange == _exchange, binding.c.routing_key == _key, binding.c.queue == _name)
_exists = sa.select(sa.exists(sa.select(binding.c.queue).where(*_of_key)))
_bind = sa.insert(binding).values(
    exchange=_exchange, routing_key=_key, queue=_name, pattern=sa.bindparam("the_pattern", type_=sa.Text())
)
_unbind = sa.delete(binding).where(*_of_key)


def _parameters(row: Row) -> dict[str, str]:
    return {"the_exchange": row[0], "the_key": row[1], "the_queue": row[2]}


def exists(connection: Connection, row: Row) -> bool:
    """Whether there is this binding."""
    return bool(connection.execute(_exists, _parameters(row)).scalar_one())


def bind(connection: Connection, row: Row) -> None:
    """Remember a binding."""
    connection.execute(_unbind, _parameters(row))
    connection.execute(_bind, {**_parameters(row), "the_pattern": row[3]})


def unbind(connection: Connection, row: Row) -> None:
    """Forget a binding."""
    connection.execute(_unbind, _parameters(row))


_bound = (
    sa.select(
        binding.c.exchange,
        binding.c.routing_key,
        binding.c.queue,
        binding.c.pattern,
        queue.c.expires_after,
        queue.c.message_ttl,
    )
    .join_from(binding, queue, queue.c.name == binding.c.queue, isouter=True)
    .where(
        binding.c.exchange == _exchange,
        sa.or_(queue.c.expires_after.is_(None), queue.c.used_at + queue.c.expires_after >= _now),
    )
)


def bound(connection: Connection, exchange: str, now: float) -> Sequence[BoundRow]:
    """The bindings of an exchange to queues that live, and these queues' options."""
    rows = connection.execute(_bound, {"the_exchange": exchange, "now": now})
    return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in rows]
