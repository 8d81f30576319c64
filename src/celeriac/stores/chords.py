"""What a store keeps of a chord until its body has been called: how many parts it has, and those that are done.

The semantics are those of Celery's Redis result backend, whose keys and scripts the store in Redis uses, so that stock
workers and ours complete one chord together. The other stores count in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CLAIM", "REMEMBERED", "ChordClaim", "ChordPart", "claim_seconds", "in_order"]

#: Seconds that a chord is remembered as done, at least: duplicates of its parts that come later do nothing.
REMEMBERED = 300.0


@dataclass(slots=True)
class ChordPart:
    """A task of a chord's header that has ended.

    ``index`` is its place in the header (the request's ``group_index``), ``None`` comes last. ``state`` is one of
    Celery's. ``result`` is JSON: the value, or an exception as Celery's ``encode_result`` writes it.
    """

    group_id: str
    task_id: str
    index: int | None
    state: str
    result: str


@dataclass(slots=True)
class ChordClaim:
    """A chord all of whose parts are done, and the right to call its body, which expires.

    ``parts`` are in the header's order. ``header`` is the JSON of ``GroupResult.as_tuple()`` where one was saved: the
    results must be nested as it is, which are otherwise those of ``parts``.
    """

    group_id: str
    token: str
    parts: list[ChordPart]
    header: str | None = None


def claim_seconds(join_timeout: float | None) -> float:
    """How long a claim holds, from ``result_chord_join_timeout``: as Celery's ``RedisBackend`` reckons it."""
    return float(max(5, int((join_timeout or 5.0) * 2)))


#: Seconds that a claim holds with Celery's default settings.
CLAIM = claim_seconds(3.0)


def in_order(parts: Iterable[ChordPart]) -> list[ChordPart]:
    """Parts in the header's order; those of the same place, or of none, in the order in which they are given."""
    return sorted(parts, key=lambda part: float("inf") if part.index is None else part.index)
