"""A batch of transitions as few statements: one for each kind of transition, whatever the size of the batch.

A statement takes its batch as the rows of a ``VALUES`` list: binding a value takes a tenth of the time of reading
it out of a JSON parameter, and does not give up the interpreter lock either. Columns that nobody in the batch has
are left out, because ``sqlite3`` binds a string at once and looks for adapters of a None. The lists come in a few
sizes, filled up with empty rows, so that the driver prepares few statements.

The rules are those of :class:`celeriac.stores.records.Transition`. SQLite takes the rows of one statement one by
one, so a task may occur in it more than once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection

from celeriac.sql.triggers import READY, attempts_after

__all__ = ["Entry", "apply_transitions", "execute_batch"]


class Entry(NamedTuple):
    """A state to enter. Times are epoch seconds, ``date_done`` is Celery's text.

    ``replay`` starts a record over; it is no column.
    """

    task_id: str
    status: str
    changed_at: float
    name: str | None = None
    queue: str | None = None
    args: str | None = None
    kwargs: str | None = None
    owner: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    eta: float | None = None
    expires_at: float | None = None
    retries: int | None = None
    worker: str | None = None
    result: str | None = None
    traceback: str | None = None
    error: str | None = None
    children: str | None = None
    date_done: str | None = None
    replay: bool = False


_COLUMNS = Entry._fields[:-1]

#: What a call is, once and for all; what is known stays (its arguments may have been redacted).
_CALL = ("name", "args", "kwargs", "owner", "root_id", "parent_id", "group_id")

#: What each delivery of it may have of its own.
_DELIVERY = ("queue", "eta", "expires_at", "retries")

_LISTED = ", ".join(_COLUMNS)


def _filled(*columns: str) -> str:
    return ", ".join(f"{name} = coalesce(record.{name}, excluded.{name})" for name in columns)


def _changed(*columns: str) -> str:
    return ", ".join(f"{name} = coalesce(excluded.{name}, record.{name})" for name in columns)


# Never touches the status: the triggers take an update of that for a new state.
_CREATE = f"""
INSERT INTO celery_taskmeta AS record ({_LISTED}, enqueued_at, version)
SELECT {_LISTED}, changed_at, 1 FROM ({{batch}}) WHERE true
ON CONFLICT (task_id) DO UPDATE SET
  {_filled(*_CALL, *_DELIVERY, "enqueued_at")}
"""

_REPLAY = f"""
INSERT INTO celery_taskmeta AS record ({_LISTED}, enqueued_at, version)
SELECT {_LISTED}, changed_at, 1 FROM ({{batch}}) WHERE true
ON CONFLICT (task_id) DO UPDATE SET
  {_changed(*_CALL, "queue")},
  status = excluded.status, changed_at = excluded.changed_at, enqueued_at = excluded.enqueued_at,
  eta = excluded.eta, expires_at = excluded.expires_at, retries = coalesce(excluded.retries, 0),
  worker = NULL, result = NULL, traceback = NULL, error = NULL, children = NULL, progress = NULL,
  started_at = NULL, finished_at = NULL, date_done = NULL, cancel_requested_at = NULL,
  version = coalesce(record.version, 0) + 1
"""

_FIRST_ATTEMPT = attempts_after(
    "NULL", status="status", retries="retries", worker="worker", at="changed_at", error="error"
)
_ATTEMPTS = attempts_after(
    "record.attempts",
    status="excluded.status",
    retries="coalesce(excluded.retries, record.retries)",
    worker="coalesce(excluded.worker, record.worker)",
    at="excluded.changed_at",
    error="excluded.error",
)

_ENTER = f"""
INSERT INTO celery_taskmeta AS record ({_LISTED}, started_at, finished_at, attempts, version)
SELECT {_LISTED},
  CASE WHEN status = 'STARTED' THEN changed_at END,
  CASE WHEN status IN {READY} THEN changed_at END,
  {_FIRST_ATTEMPT}, 1
FROM ({{batch}}) WHERE true
ON CONFLICT (task_id) DO UPDATE SET
  {_filled(*_CALL)}, {_changed(*_DELIVERY, "worker", "children")},
  status = excluded.status, changed_at = excluded.changed_at, result = excluded.result,
  traceback = excluded.traceback, error = excluded.error, date_done = excluded.date_done,
  started_at = coalesce(excluded.started_at, record.started_at), finished_at = excluded.finished_at,
  attempts = {_ATTEMPTS},
  version = coalesce(record.version, 0) + 1
WHERE record.status NOT IN ('SUCCESS', 'REVOKED') AND (
  record.status <> 'FAILURE' OR excluded.status IN ('STARTED', 'RETRY')
  OR (excluded.status IN {READY} AND coalesce(excluded.retries, 0) > coalesce(record.retries, 0)))
"""

_SIZES = (1, 8, 64)

#: Celery keeps JSON in binary columns.
_BINARY = frozenset({"args", "kwargs", "result", "children"})


@lru_cache(maxsize=256)
def _with_batch(statement: str, columns: Sequence[str], present: Sequence[str], size: int) -> str:
    positions = {name: f"column{number}" for number, name in enumerate(present, 1)}
    selected = ", ".join(
        f"{f'CAST({positions[name]} AS BLOB)' if name in _BINARY else positions[name]} AS {name}"
        if name in positions
        else f"NULL AS {name}"
        for name in columns
    )
    rows = ", ".join([f"({', '.join('?' * len(present))})"] * size)
    return statement.format(batch=f"SELECT {selected} FROM (VALUES {rows}) WHERE column1 <> ''")


def execute_batch(
    connection: Connection, statement: str, columns: tuple[str, ...], rows: Sequence[Sequence[Any]]
) -> None:
    """Execute ``statement``, which says where ``{batch}`` belongs, for rows of ``columns``, many at a time.

    The first column of a row is a text that is not empty.
    """
    largest = _SIZES[-1]
    for start in range(0, len(rows), largest):
        part = rows[start : start + largest]
        size = next(size for size in _SIZES if size >= len(part))
        by_column = [
            (name, values)
            for name, values in zip(columns, zip(*part, strict=True), strict=True)
            if values.count(None) < len(part)
        ]
        present = tuple(name for name, _ in by_column)
        values = chain.from_iterable(zip(*(values for _, values in by_column), strict=True))
        padding = ("",) * (len(present) * (size - len(part)))
        connection.exec_driver_sql(_with_batch(statement, columns, present, size), (*values, *padding))


def apply_transitions(connection: Connection, entries: Iterable[Entry]) -> None:
    """Apply transitions in order, and append their events. Fits a write transaction."""
    for statement, group in _grouped(entries):
        execute_batch(connection, statement, _COLUMNS, group)


def _statement(entry: Entry) -> str:
    if entry.status != "PENDING":
        return _ENTER
    return _REPLAY if entry.replay else _CREATE


def _grouped(entries: Iterable[Entry]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """The fewest groups of one statement each that keep the order of each task's entries."""
    groups: list[tuple[str, list[tuple[Any, ...]]]] = []
    earliest: dict[str, int] = {}
    for entry in entries:
        statement = _statement(entry)
        index = earliest.get(entry.task_id, 0)
        while index < len(groups) and groups[index][0] is not statement:
            index += 1
        if index == len(groups):
            groups.append((statement, []))
        groups[index][1].append(entry[:-1])
        earliest[entry.task_id] = index
    return groups
