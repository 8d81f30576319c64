"""Ten thousand tasks that wait for a second each, all at once on one worker."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import Bar, Figure, at_most
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.systems import EMBEDDED, WorkerOptions

__all__ = ["measure"]

_NAME = "sleepers"
_NAP = 1.0


def measure(scale: Scale) -> Iterator[Row]:
    """From the first start to the last end, with a slot for each task."""
    runs = [_run(scale.sleepers) for _ in range(scale.runs)]
    what = f"{scale.sleepers:,} tasks of {_NAP:g} s"
    yield Figure(_NAME, EMBEDDED.name, what, "s", [run.seconds for run in runs], at_most(5.0))
    peak = [run.peak_memory / 1e6 for run in runs]
    yield Figure(_NAME, EMBEDDED.name, "memory at most", "MB", peak, Bar("<", 400.0))
    cpu = [run.cpu_seconds for run in runs]
    yield Figure(_NAME, EMBEDDED.name, "processor time of the worker", "s", cpu)


def _run(count: int) -> Drained:
    with EMBEDDED.place() as place:
        place.fill("nap", count, _NAP)
        return drain(EMBEDDED, place, count, WorkerOptions(concurrency=count))
