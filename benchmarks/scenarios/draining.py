"""One worker empties a queue that was filled before: what the throughput scenarios share."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.processes import running, wait_until
from benchmarks.systems import Place, System, WorkerOptions

__all__ = ["Drained", "drain"]

#: Seconds that a worker gets to start its first task, and to empty the queue.
_START = 60.0
_END = 600.0


@dataclass(frozen=True, slots=True)
class Drained:
    """From the first start to the last end: seconds, processor seconds of the worker, bytes of memory at most.

    ``since_command`` are the seconds from the command that started the worker to the last end.
    """

    count: int
    seconds: float
    cpu_seconds: float
    peak_memory: float
    since_command: float

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
    with ExitStack() as stack:
        commanded = time.time()
        # Without patience in the end: some take longer for that than for everything before.
        workers = [stack.enter_context(running(each, place.env, 0)) for each in system.workers(options)]
        first = wait_until(workers[0], place.begun, timeout=_START)
        cpu = sum(worker.cpu_seconds() for worker in workers)

        def drained() -> bool:
            watch()
            return place.drained()

        last = wait_until(workers[0], drained, timeout=_END)
        cpu = sum(worker.cpu_seconds() for worker in workers) - cpu
        peak = sum(worker.peak_memory() for worker in workers)
        for worker in workers:
            # A queue is empty, too, when everything that was in it has failed.
            worker.check_errors()
    span = place.span(count)
    if span is not None:
        first, last = min(first, span[0]), max(last, span[1])
    return Drained(count, last - first, cpu, peak, last - commanded)
