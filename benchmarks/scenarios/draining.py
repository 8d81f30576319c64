"""One worker empties a queue that was filled before: what the throughput scenarios share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.processes import running, wait_until
from benchmarks.systems import Place, System, WorkerOptions

__all__ = ["Drained", "drain"]

#: Seconds that a worker gets to start its first task, and to empty the queue.
_START = 60.0
_END = 600.0


@dataclass(frozen=True, slots=True)
class Drained:
    """From the first start to the last end: seconds, processor seconds of the worker, bytes of memory at most."""

    count: int
    seconds: float
    cpu_seconds: float
    peak_memory: float

    @property
    def rate(self) -> float:
        """Tasks per second."""
        return self.count / self.seconds


def drain(
    system: System,
    place: Place,
    count: int,
    options: WorkerOptions = WorkerOptions(),  # noqa: B008 - frozen
    watch: Callable[[], None] = lambda: None,
) -> Drained:
    """Start a worker for the ``count`` tasks that ``place`` is filled with, and wait until nothing is left of them.

    ``watch`` is called again and again meanwhile. The end is that of the last settlement, or of the last task where
    that is later.
    """
    with running(system.worker(options), place.env) as worker:
        first = wait_until(worker, place.begun, timeout=_START)
        cpu = worker.cpu_seconds()

        def drained() -> bool:
            watch()
            return place.drained()

        last = wait_until(worker, drained, timeout=_END)
        cpu = worker.cpu_seconds() - cpu
        peak = worker.peak_memory()
    span = place.span(count)
    if span is not None:
        first, last = min(first, span[0]), max(last, span[1])
    return Drained(count, last - first, cpu, peak)
