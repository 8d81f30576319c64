"""What Celery's groups consist of, in Celery's own table."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.tables import task_group

__all__ = ["delete", "restore", "save", "trim"]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def save(connection: Connection, group_id: str, value: str, now: float) -> None:
    """Keep what a group consists of (JSON), instead of what may be kept by that id."""
    delete(connection, group_id)
    connection.execute(
        sa.insert(task_group).values(taskset_id=group_id, result=value.encode(), date_done=_moment(now))
    )


def restore(connection: Connection, group_id: str) -> str | None:
    """What a group consists of (JSON)."""
    value: bytes | None = connection.execute(
        sa.select(task_group.c.result).where(task_group.c.taskset_id == group_id)
    ).scalar()
    return None if value is None else value.decode()


def delete(connection: Connection, group_id: str) -> None:
    """Forget a group."""
    connection.execute(sa.delete(task_group).where(task_group.c.taskset_id == group_id))


def trim(connection: Connection, before: float) -> None:
    """Forget the groups that were saved before a time."""
    connection.execute(sa.delete(task_group).where(task_group.c.date_done < _moment(before)))
