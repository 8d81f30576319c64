"""Leases that ended while nobody could renew them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.tables import is_leased, is_moving, message

__all__ = ["spare"]

_spare = (
    sa.update(message)
    .where(is_moving, is_leased, message.c.due <= sa.bindparam("now", type_=sa.Float()))
    .values(due=sa.bindparam("until", type_=sa.Float()))
)


def spare(connection: Connection, now: float, until: float) -> None:
    """Leave deliveries whose lease has ended to their holders until then; their tags stay valid."""
    connection.execute(_spare, {"now": now, "until": until})
