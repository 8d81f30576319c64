"""How fast tasks are enqueued, each confirmed by the broker: from many requests at once, and by blocking calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.figures import Figure, Skipped, at_least
from benchmarks.processes import run_probe
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.systems import EMBEDDED, STOCK_THREADS, System

__all__ = ["measure"]

_NAME = "enqueue"
_REQUESTS = 64
_WARM_UP = 20


def measure(scale: Scale) -> Iterator[Row]:
    """``await task.enqueue()`` from 64 coroutines; beside it ``task.delay()``, stock and ours."""
    arguments: dict[str, Any] = {"app": EMBEDDED.app, "count": scale.enqueued, "requests": _REQUESTS}
    yield from _probe(EMBEDDED, f"enqueue, {_REQUESTS} requests", "publish", arguments, scale.runs, 10_000.0)
    for system in (EMBEDDED, STOCK_THREADS):
        reason = system.unavailable()
        if reason is not None:
            yield Skipped(_NAME, system.name, reason)
            continue
        arguments = {"app": system.app, "task": "noop", "count": scale.delayed, "warm_up": _WARM_UP}
        yield from _probe(system, ".delay(), one after the other", "delay", arguments, scale.runs)


def _probe(
    system: System, what: str, probe: str, arguments: dict[str, Any], runs: int, bar: float | None = None
) -> Iterator[Row]:
    measured = []
    for _ in range(runs):
        with system.place() as place:
            measured.append(run_probe(probe, arguments, place.env))
    count = arguments["count"]
    rates = [count / run["seconds"] for run in measured]
    yield Figure(_NAME, system.name, what, "tasks/s", rates, None if bar is None else at_least(bar))
    cpu = [run["cpu_seconds"] / count * 1e6 for run in measured]
    yield Figure(_NAME, system.name, f"{what}: processor time", "µs/task", cpu)
