"""One task at a time on an idle system, caller and worker being two processes: how long until it starts, and ends."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.figures import Bar, Figure, at_most
from benchmarks.processes import run_probe, running
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.systems import EMBEDDED, WorkerOptions

__all__ = ["measure"]

_NAME = "latency"

#: In hundredths: the shares of the samples that take no longer.
_SHARES = {50: "median", 95: "95 %", 99: "99 %"}


def measure(scale: Scale) -> Iterator[Row]:
    """From ``enqueue`` to the result, and from ``enqueue`` to the start in the worker."""
    runs = []
    for _ in range(scale.runs):
        with EMBEDDED.place() as place, running(EMBEDDED.worker(WorkerOptions()), place.env):
            runs.append(run_probe("latency", {"samples": scale.samples, "pause": scale.pause}, place.env))
    for key, what, bar in (
        ("result", "enqueue to result", Bar("<", 25.0)),
        ("start", "enqueue to start", at_most(20.0)),
    ):
        for share, name in _SHARES.items():
            values = [_quantile(run[key], share) * 1000 for run in runs]
            yield Figure(_NAME, EMBEDDED.name, f"{what}, {name}", "ms", values, bar if share == 50 else None)


def _quantile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]
