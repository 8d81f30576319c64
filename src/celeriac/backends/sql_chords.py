"""Chords in the database, for synchronous code."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from celeriac.sql import chords
from celeriac.stores.chords import REMEMBERED, ChordClaim, ChordPart
from celeriac.stores.entries import to_claims, to_part_rows

__all__ = ["SQLChords"]

T = TypeVar("T")

#: Chords that one transaction of a clean-up deletes.
_BATCH = 100


class SQLChords:
    """Chords by way of ``write`` and ``read``, which run an operation in a transaction."""

    def __init__(
        self,
        write: Callable[[Callable[[Connection], Any]], Any],
        read: Callable[[Callable[[Connection], Any]], Any],
    ) -> None:
        self._write = write
        self._read = read

    def set_size(self, group_id: str, size: int) -> None:
        """Say how many parts a chord has."""
        now = time.time()
        self._write(lambda connection: chords.set_size(connection, group_id, size, now))

    def extend(self, group_id: str, by: int) -> None:
        """So many parts more."""
        now = time.time()
        self._write(lambda connection: chords.extend(connection, group_id, by, now))

    def add(self, parts: Iterable[ChordPart], claim_for: float) -> list[ChordClaim]:
        """Add parts, and claim for so many seconds what this completes."""
        now = time.time()
        rows = to_part_rows(parts)
        return to_claims(self._write(lambda connection: chords.add_parts(connection, rows, now, claim_for)))

    def claimed(self, group_ids: Iterable[str]) -> Collection[str]:
        """Which of these are claimed now."""
        now, ids = time.time(), list(group_ids)
        found: set[str] = self._read(lambda connection: chords.claimed(connection, ids, now))
        return found

    def finish(self, claim: ChordClaim, claim_for: float) -> bool:
        """Forget a chord's parts, and remember that it is done."""
        now = time.time()
        return bool(
            self._write(lambda connection: chords.finish(connection, claim.group_id, claim.token, now))
        )

    def trim(self, before: float | None) -> None:
        """Forget the chords that have not changed since a time, and those that are done and were remembered enough."""
        done_before = time.time() - REMEMBERED
        while self._write(lambda connection: chords.trim(connection, done_before, before, _BATCH)) == _BATCH:
            pass
