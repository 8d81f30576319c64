"""A long queue: it may cost neither speed nor memory, and the file must not grow without bound while it is emptied."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.systems import EMBEDDED

__all__ = ["measure"]

_NAME = "growth"

_UNUSED = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"


@dataclass(frozen=True, slots=True)
class _Run:
    """What a worker did, and bytes of the file: with the queue full, at most, and unused in the end."""

    drained: Drained
    filled: int
    largest: int
    unused: int


def measure(scale: Scale) -> Iterator[Row]:
    """The same worker on a short queue and on a long one."""
    short, long = _run(scale.queued), _run(scale.many)
    for run in (short, long):
        what = f"{run.drained.count:,} queued"
        yield _figure(what, "tasks/s", run.drained.rate)
        yield _figure(f"{what}: memory at most", "MB", run.drained.peak_memory / 1e6)
        yield _figure(f"{what}: file with the queue full", "MB", run.filled / 1e6)
        yield _figure(f"{what}: file at most", "MB", run.largest / 1e6)
        yield _figure(f"{what}: free for reuse in the end", "MB", run.unused / 1e6)
    speed = long.drained.rate / short.drained.rate
    yield Figure(_NAME, EMBEDDED.name, "speed, long queue to short", "times", [speed], at_least(0.9))
    memory = long.drained.peak_memory / short.drained.peak_memory
    yield Figure(_NAME, EMBEDDED.name, "memory, long queue to short", "times", [memory], at_most(1.25))


def _figure(what: str, unit: str, value: float) -> Figure:
    return Figure(_NAME, EMBEDDED.name, what, unit, [value])


def _run(count: int) -> _Run:
    with EMBEDDED.place() as place:
        place.fill("noop", count, 1)
        filled = place.size()
        sizes = [filled]
        drained = drain(EMBEDDED, place, count, watch=lambda: sizes.append(place.size()))
        with closing(sqlite3.connect(place.file)) as connection:
            unused: int = connection.execute(_UNUSED).fetchone()[0]
    return _Run(drained, filled, max(sizes), unused)
