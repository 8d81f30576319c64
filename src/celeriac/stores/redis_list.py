"""Lists of records in Redis, read slice by slice so that nobody else waits for long."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from celeriac.stores.records import RecordFilter, RecordPage, TaskRecord
from celeriac.stores.redis_rows import Kept, to_redis_record
from celeriac.stores.rows import micros, search_parts

__all__ = ["Listing"]

#: Records that one slice looks at, searches, and gives, at most: some milliseconds of the server's time.
_LOOKS = 1000
_SEARCHES = 300
_FINDS = 250

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Listing:
    """A list on its way: what to ask for next, and what has been found."""

    def __init__(self, where: RecordFilter, prefix: str, before: int | None, wanted: int) -> None:
        self._where = where
        self._prefix = prefix
        self._before: int | None = before
        self._wanted = wanted
        self._found: list[tuple[str, TaskRecord]] = []  # with their numbers
        self.complete = False

    def arguments(self) -> list[Any]:
        """The arguments of the script for the next slice."""
        where = self._where
        equal = (where.state, where.name, where.queue, where.owner)
        needles = {part.translate(_ASCII_LOWER) for part in search_parts(where.search or "")} - {""}
        return [
            self._prefix,
            "" if self._before is None else self._before,
            min(self._wanted - len(self._found), _FINDS),
            _SEARCHES if needles else _LOOKS,
            *("" if value is None else f"={value}" for value in equal),
            _micros(where.since),
            _micros(where.until),
            *needles,
        ]

    def take(self, answer: list[Any]) -> Iterator[tuple[str, Kept]]:
        """What a slice has; the next one begins behind it."""
        further, *rows = answer
        self._before = None if further is None else int(further)
        self.complete = further is None
        return ((task_id.decode(), Kept(values, text)) for task_id, values, text in rows)

    def add(self, rows: Mapping[str, Kept]) -> None:
        """Add what still matches after it was brought up to date."""
        for task_id, kept in rows.items():
            record = to_redis_record(task_id, kept)
            if record is not None and self._matches(record):
                self._found.append((kept.field("number"), record))
        self.complete = self.complete or len(self._found) >= self._wanted

    def _matches(self, record: TaskRecord) -> bool:
        where = self._where
        return (where.state is None or record.state == where.state) and (
            where.queue is None or record.queue == where.queue
        )

    def page(self, limit: int) -> RecordPage:
        """The page of what was found."""
        following = self._found[limit - 1][0] if len(self._found) > limit else None
        return RecordPage([record for _, record in self._found[:limit]], following)


def _micros(moment: datetime | None) -> int | str:
    return "" if moment is None else micros(moment.timestamp())
