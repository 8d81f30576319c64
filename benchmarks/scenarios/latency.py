"""One task at a time on an idle system, caller and worker being two processes: how long until it starts, and ends."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.figures import Bar, Figure, Skipped, at_most
from benchmarks.processes import run_probe, running
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.systems import EMBEDDED, NATIVE, System, WorkerOptions

__all__ = ["measure", "measure_redis"]

#: In hundredths: the shares of the samples that take no longer.
_SHARES = {50: "median", 95: "95 %", 99: "99 %"}

#: From ``enqueue`` to which moment, and the bars of some of those shares, in milliseconds.
_Bars = dict[str, dict[int, Bar]]

_EMBEDDED: _Bars = {"result": {50: Bar("<", 25.0)}, "start": {50: at_most(20.0)}}
_NATIVE: _Bars = {"result": {50: Bar("<", 3.0), 99: Bar("<", 10.0)}, "start": {}}


def measure(scale: Scale) -> Iterator[Row]:
    """From ``enqueue`` to the result, and from ``enqueue`` to the start in the worker."""
    yield from _measure("latency", EMBEDDED, scale.samples, _EMBEDDED, scale)


def measure_redis(scale: Scale) -> Iterator[Row]:
    """The same on Redis, with more samples, as each takes less time."""
    reason = NATIVE.unavailable()
    if reason is not None:
        yield Skipped("redis-latency", NATIVE.name, reason)
        return
    yield from _measure("redis-latency", NATIVE, scale.redis_samples, _NATIVE, scale)


def _measure(scenario: str, system: System, samples: int, bars: _Bars, scale: Scale) -> Iterator[Row]:
    runs = []
    for _ in range(scale.runs):
        with system.place() as place, running(system.worker(WorkerOptions()), place.env):
            runs.append(run_probe("latency", {"samples": samples, "pause": scale.pause}, place.env))
    for key, barred in bars.items():
        for share, name in _SHARES.items():
            values = [_quantile(run[key], share) * 1000 for run in runs]
            yield Figure(scenario, system.name, f"enqueue to {key}, {name}", "ms", values, barred.get(share))


def _quantile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]
