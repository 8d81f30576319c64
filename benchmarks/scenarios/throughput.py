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

#: Settings of a stock worker with no results to store: none is much faster than the others, so all get a trial.
_STOCK_OPTIONS = (
    WorkerOptions(concurrency=16, prefetch_multiplier=1),
    WorkerOptions(concurrency=1, prefetch_multiplier=1),
    WorkerOptions(concurrency=4, prefetch_multiplier=16),
    WorkerOptions(concurrency=100, prefetch_multiplier=4),
)


def measure(scale: Scale) -> Iterator[Row]:
    """A worker of ours, a stock worker in the same run, and how they compare."""
    ours = [_run(EMBEDDED, scale.queued, WorkerOptions()) for _ in range(scale.runs)]
    yield from _rows(EMBEDDED, ours, WorkerOptions(), bar=3000.0)
    reason = STOCK_THREADS.unavailable()
    if reason is not None:
        yield Skipped(_NAME, STOCK_THREADS.name, reason)
        return
    options = _best_stock_options(scale.stock_trial)
    stock = [_run(STOCK_THREADS, scale.stock_queued, options) for _ in range(scale.runs)]
    yield from _rows(STOCK_THREADS, stock, options)
    theirs = statistics.median(run.rate for run in stock)
    yield Figure(
        _NAME,
        EMBEDDED.name,
        "as fast as stock Celery",
        "times",
        [run.rate / theirs for run in ours],
        at_least(4.0),
        "stock Celery without results, celeriac with records and results",
    )


def _run(system: System, count: int, options: WorkerOptions) -> Drained:
    with system.place() as place:
        place.fill("noop", count, 1)
        return drain(system, place, count, options)


def _best_stock_options(trial: int) -> WorkerOptions:
    if not trial:
        return _STOCK_OPTIONS[0]
    return max(_STOCK_OPTIONS, key=lambda options: _run(STOCK_THREADS, trial, options).rate)


def _rows(
    system: System, runs: list[Drained], options: WorkerOptions, bar: float | None = None
) -> Iterator[Row]:
    yield Figure(
        _NAME,
        system.name,
        f"one worker, {options}",
        "tasks/s",
        [run.rate for run in runs],
        None if bar is None else at_least(bar),
        f"{runs[0].count:,} tasks in each run",
    )
    cpu = [run.cpu_seconds / run.count * 1e6 for run in runs]
    yield Figure(_NAME, system.name, "processor time of the worker", "µs/task", cpu)
    yield Figure(_NAME, system.name, "memory at most", "MB", [run.peak_memory / 1e6 for run in runs])
