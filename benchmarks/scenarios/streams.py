"""Thousands of open event streams on one API: memory, connections to the store, and how soon an event is there."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks.figures import Bar, Figure, Skipped, at_least, at_most
from benchmarks.processes import Command, Failed, run_probe, running, wait_until
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.idle import answers
from benchmarks.systems import EMBEDDED, NATIVE, Place, System

__all__ = ["measure", "measure_redis"]

#: Files that the API and its clients may have open, besides one for each stream.
_FILES = 500

_START = 30.0

_MB = 1e6

#: What is measured → its name, unit, factor and bar.
_FIGURES: dict[str, tuple[str, str, float, Bar | None]] = {
    "before": ("memory of the API before", "MB", 1 / _MB, None),
    "idle": ("memory with all of them open", "MB", 1 / _MB, Bar("<", 300.0)),
    "peak": ("memory at most", "MB", 1 / _MB, Bar("<", 300.0)),
    "opening": ("opening them, 50 at a time", "s", 1, None),
    "median": ("from the store to its stream, median", "ms", 1e3, Bar("<", 100.0)),
    "late": ("from the store to its stream, 99 %", "ms", 1e3, None),
    "used": ("processor time of the API for an event", "µs", 1e6, None),
    "arrived": ("events that arrived, of those sent", "%", 1, at_least(100.0)),
}


def measure(scale: Scale) -> Iterator[Row]:
    """On SQLite."""
    yield from _rows("streams", EMBEDDED, scale)


def measure_redis(scale: Scale) -> Iterator[Row]:
    """On Redis."""
    reason = NATIVE.unavailable()
    if reason is not None:
        yield Skipped("redis-streams", NATIVE.name, reason)
        return
    yield from _rows("redis-streams", NATIVE, scale)


def _rows(name: str, system: System, scale: Scale) -> Iterator[Row]:
    runs = []
    for _ in range(scale.runs):
        with system.place() as place:
            runs.append(_run(place, scale))
    who = f"{scale.streams:,} streams"
    if system is NATIVE:
        # One that commands share, and one that listens.
        connections = [run["connections"] for run in runs]
        yield Figure(name, system.name, f"{who}: connections to Redis", "", connections, at_most(2))
    for key, (what, unit, factor, bar) in _FIGURES.items():
        values = [run[key] * factor for run in runs]
        yield Figure(name, system.name, f"{who}: {what}", unit, values, bar)


def _run(place: Place, scale: Scale) -> dict[str, float]:
    files = scale.streams + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise Failed(f"{files} open files are needed, and {hard} allowed.")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    arguments = ("uvicorn", "benchmarks.apps.web:app", "--port", str(port), "--log-level", "warning")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    try:
        with running(Command(arguments), place.env, patience=0) as api:
            wait_until(api, lambda: answers(port), timeout=_START)
            wanted = {
                "count": scale.streams,
                "port": port,
                "pid": api.pid,
                "store_port": urlsplit(place.env["CELERY_BROKER_URL"]).port or 0,
                "rate": scale.stream_rate,
                "seconds": scale.stream_seconds,
            }
            measured: dict[str, float] = run_probe("streams", wanted, place.env)
            api.check_errors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {**measured, "arrived": 100 * measured["arrived"] / measured["sent"]}
