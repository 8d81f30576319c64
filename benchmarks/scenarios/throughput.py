"""Tasks that do nothing, queued beforehand: how many a second one worker process runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.figures import Figure, Skipped, at_least
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.systems import EMBEDDED, STOCK_THREADS, System, WorkerOptions

__all__ = ["measure"]

_NAME = "throughput"


def measure(scale: Scale) -> Iterator[Row]:
    """A worker of ours, a stock worker in the same run, and how they compare."""
    reason = STOCK_THREADS.unavailable()
    settings = () if reason else STOCK_THREADS.settings[: scale.stock_settings]
    ours: list[Drained] = []
    stock: dict[WorkerOptions, list[Drained]] = {options: [] for options in settings}
    # In rounds: when the machine is slower for a while, everybody is. A setting picked by a trial of its own would be
    # the one that was lucky then, and might well be slower when it counts.
    for _ in range(scale.runs):
        ours.append(_run(EMBEDDED, scale.queued, WorkerOptions()))
        for options, runs in stock.items():
            runs.append(_run(STOCK_THREADS, scale.stock_queued, options))
    yield from _rows(EMBEDDED, ours, WorkerOptions(), bar=3000.0)
    if reason is not None:
        yield Skipped(_NAME, STOCK_THREADS.name, reason)
        return
    best = max(stock, key=lambda options: statistics.median(run.rate for run in stock[options]))
    yield from _rows(STOCK_THREADS, stock[best], best, note=f"the best of {len(stock)} settings")
    yield Figure(
        _NAME,
        EMBEDDED.name,
        "as fast as stock Celery",
        "times",
        [run.rate / theirs.rate for run, theirs in zip(ours, stock[best], strict=True)],
        at_least(4.0),
        "round by round; stock Celery without results, celeriac with records and results",
    )


def _run(system: System, count: int, options: WorkerOptions) -> Drained:
    with system.place() as place:
        place.fill("noop", count, 1)
        return drain(system, place, count, options)


def _rows(
    system: System, runs: list[Drained], options: WorkerOptions, bar: float | None = None, note: str = ""
) -> Iterator[Row]:
    yield Figure(
        _NAME,
        system.name,
        f"one worker, {options}",
        "tasks/s",
        [run.rate for run in runs],
        None if bar is None else at_least(bar),
        f"{runs[0].count:,} tasks in each run{note and ', '}{note}",
    )
    cpu = [run.cpu_seconds / run.count * 1e6 for run in runs]
    yield Figure(_NAME, system.name, "processor time of the worker", "µs/task", cpu)
    yield Figure(_NAME, system.name, "memory at most", "MB", [run.peak_memory / 1e6 for run in runs])
