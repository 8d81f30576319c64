"""Queues and bindings in the database, on a connection inside a transaction.

A queue that was declared with ``expires_after`` goes when nobody has used it for so long, with its bindings and its
messages: the mailbox of a worker that died, the replies that nobody came for, the events of a monitor that was closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql import bindings as bindings_table
from celeriac.sql import messages
from celeriac.sql.tables import binding, is_ready, message, queue
from celeriac.transports.storage import Binding, Declaration, QueueOptions

__all__ = [
    "bind",
    "bindings",
    "bound",
    "declare",
    "delete",
    "drop_expired",
    "exists",
    "has_binding",
    "options",
    "touch",
    "unbind",
]

#: How many expired queues one call drops at most, so that it never holds the write lock for long.
_DROP_LIMIT = 20

_name = sa.bindparam("the_queue", type_=sa.Text())
_now = sa.bindparam("now", type_=sa.Float())
_exchange = sa.bindparam("the_exchange", type_=sa.Text())

_options = sa.select(queue.c.expires_after, queue.c.message_ttl).where(queue.c.name == _name)


def options(connection: Connection, name: str) -> QueueOptions | None:
    """How a queue was declared, or None."""
    row = connection.execute(_options, {"the_queue": name}).one_or_none()
    return None if row is None else QueueOptions(*row)


_update = (
    sa.update(queue)
    .where(queue.c.name == _name)
    .values(
        expires_after=sa.bindparam("lifetime", type_=sa.Float()),
        message_ttl=sa.bindparam("ttl", type_=sa.Float()),
        used_at=_now,
    )
)
_insert = sa.insert(queue).values(
    name=_name,
    expires_after=sa.bindparam("lifetime", type_=sa.Float()),
    message_ttl=sa.bindparam("ttl", type_=sa.Float()),
    used_at=_now,
)


def declare(connection: Connection, name: str, wanted: QueueOptions, now: float) -> None:
    """Create the queue, or set its options and its time of use."""
    parameters = {"the_queue": name, "lifetime": wanted.expires_after, "ttl": wanted.message_ttl, "now": now}
    if connection.execute(_update, parameters).rowcount == 0:
        connection.execute(_insert, parameters)


_touch = sa.update(queue).where(queue.c.name == _name).values(used_at=_now)


def touch(connection: Connection, declarations: Iterable[Declaration], now: float) -> None:
    """Say that these queues are in use. One that somebody has dropped meanwhile comes back with its bindings."""
    for declared in declarations:
        if connection.execute(_touch, {"the_queue": declared.queue, "now": now}).rowcount == 0:
            declare(connection, declared.queue, declared.options, now)
            for each in declared.bindings:
                bind(connection, each)


_exists = sa.select(
    sa.or_(
        sa.exists(sa.select(queue.c.name).where(queue.c.name == _name)),
        sa.exists(sa.select(message.c.id).where(message.c.queue == _name, is_ready)),
    )
)


def exists(connection: Connection, name: str) -> bool:
    """Whether a queue has been declared, or holds messages that could be delivered."""
    return bool(connection.execute(_exists, {"the_queue": name}).scalar_one())


_delete_queue = sa.delete(queue).where(queue.c.name == _name)
_delete_bindings = sa.delete(binding).where(binding.c.queue == _name)
_delete_ready = sa.delete(message).where(message.c.queue == _name, is_ready)


def delete(connection: Connection, name: str, now: float) -> int:
    """Delete a queue, its bindings and what waits in it. Returns how many messages that were.

    Delayed messages go only with a queue that lasts; those of the others carry a time of expiry, and finding them
    here would cost a look at every delayed message there is.
    """
    declared = options(connection, name)
    connection.execute(_delete_bindings, {"the_queue": name})
    connection.execute(_delete_queue, {"the_queue": name})
    if declared is not None and declared.expires_after is not None:
        return connection.execute(_delete_ready, {"the_queue": name}).rowcount
    return messages.purge(connection, name, now)


_expired = (
    sa.select(queue.c.name)
    .where(queue.c.expires_after.is_not(None), queue.c.used_at + queue.c.expires_after < _now)
    .limit(_DROP_LIMIT)
)


def drop_expired(connection: Connection, now: float) -> None:
    """Delete queues that nobody has used for as long as they live, and messages that have expired."""
    for name in connection.execute(_expired, {"now": now}).scalars().all():
        delete(connection, name, now)
    messages.drop_expired(connection, now)


def has_binding(connection: Connection, wanted: Binding) -> bool:
    """Whether there is this binding."""
    return bindings_table.exists(connection, wanted[:4])


def bind(connection: Connection, wanted: Binding) -> None:
    """Remember a binding."""
    bindings_table.bind(connection, wanted[:4])


def unbind(connection: Connection, unwanted: Iterable[Binding]) -> None:
    """Forget bindings."""
    for each in unwanted:
        bindings_table.unbind(connection, each[:4])


_bindings = sa.select(binding.c.exchange, binding.c.routing_key, binding.c.queue, binding.c.pattern)
_bindings_of = _bindings.where(binding.c.exchange == _exchange)


def bindings(connection: Connection, exchange: str | None) -> list[Binding]:
    """The bindings of one exchange, or all."""
    result = (
        connection.execute(_bindings)
        if exchange is None
        else connection.execute(_bindings_of, {"the_exchange": exchange})
    )
    return [Binding(*row) for row in result]


def bound(connection: Connection, exchange: str, now: float) -> Sequence[tuple[Binding, QueueOptions]]:
    """The bindings of an exchange to queues that live, and these queues' options."""
    rows = bindings_table.bound(connection, exchange, now)
    return [(Binding(*row[:4]), QueueOptions(*row[4:])) for row in rows]
