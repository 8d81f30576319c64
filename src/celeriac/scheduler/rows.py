"""The schedule's rows: what each entry's last run was, and which beat leads.

Plain functions over a connection, each for a transaction of its own. Times are seconds since the epoch, leases are
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celeriac.sql.tables import leader, schedule

__all__ = ["Leader", "Run", "advance", "current_leader", "lead", "merge", "renew", "resign"]

_ROLE = "beat"
_of_beat = leader.c.role == _ROLE


class Run(NamedTuple):
    """When an entry last ran, or began, and how often it has run."""

    last_run_at: float
    total_run_count: int = 0


class Leader(NamedTuple):
    """Who leads, and when its lease ends unless it is renewed."""

    holder: str
    ends_at: float


def current_leader(connection: Connection, now: float) -> Leader | None:
    """The beat that leads, if its lease has not ended."""
    row = connection.execute(
        sa.select(leader.c.holder, leader.c.renewed_at, leader.c.lease).where(_of_beat)
    ).one_or_none()
    if row is None:
        return None
    ends_at = row.renewed_at + row.lease
    # A clock that has been set back must not make the lease of a dead beat last for hours.
    if not now < ends_at <= now + 2 * row.lease:
        return None
    return Leader(row.holder, ends_at)


def lead(connection: Connection, holder: str, lease: float, now: float) -> bool:
    """Become the leader, unless another one is. Whether ``holder`` leads now."""
    present = current_leader(connection, now)
    if present is not None and present.holder != holder:
        return False
    connection.execute(sa.delete(leader).where(_of_beat))
    connection.execute(sa.insert(leader).values(role=_ROLE, holder=holder, renewed_at=now, lease=lease))
    return True


def renew(connection: Connection, holder: str, lease: float, now: float) -> bool:
    """Start the lease anew. Whether ``holder`` still leads: a late one does, until another has taken over."""
    renewed = connection.execute(
        sa.update(leader).where(_of_beat, leader.c.holder == holder).values(renewed_at=now, lease=lease)
    )
    return renewed.rowcount == 1


def resign(connection: Connection, holder: str) -> None:
    """Hand the lease back, if ``holder`` has it."""
    connection.execute(sa.delete(leader).where(_of_beat, leader.c.holder == holder))


def merge(connection: Connection, entries: Mapping[str, Run]) -> dict[str, Run]:
    """Make the schedule's rows those of ``entries``: known ones stay as they are. Returns what the rows are then."""
    known = {
        row.name: Run(row.last_run_at, row.total_run_count)
        for row in connection.execute(sa.select(schedule)).all()
    }
    if gone := known.keys() - entries.keys():
        connection.execute(sa.delete(schedule).where(schedule.c.name.in_(gone)))
    new = {name: run for name, run in entries.items() if name not in known}
    if new:
        connection.execute(
            sa.insert(schedule), [{"name": name, **run._asdict()} for name, run in new.items()]
        )
    return {name: known.get(name, run) for name, run in entries.items()}


def advance(connection: Connection, name: str, previous: Run, run: Run) -> bool:
    """Note a run. Whether it was the first to follow ``previous``: if not, nothing changes."""
    advanced = connection.execute(
        sa.update(schedule)
        .where(schedule.c.name == name, schedule.c.last_run_at == previous.last_run_at)
        .values(last_run_at=run.last_run_at, total_run_count=run.total_run_count)
    )
    return advanced.rowcount == 1
