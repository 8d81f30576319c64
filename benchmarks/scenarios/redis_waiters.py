"""Ten thousand coroutines of one process that wait for a result each: connections and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from benchmarks.figures import Bar, Figure, Skipped, at_most
from benchmarks.processes import Failed, Process, run_probe, running, wait_until
from benchmarks.redis_server import CLIENT_NAME
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.systems import NATIVE, RedisPlace, WorkerOptions

__all__ = ["measure"]

_NAME = "redis-waiters"

#: Set by the waiting process when all of it waits.
_WAITING = "benchmark:waiting"

#: Seconds between two looks for that, and seconds for all results to come.
_LOOK = 0.05
_END = 120.0


def measure(scale: Scale) -> Iterator[Row]:
    """Everybody waits; then a worker is started, and gives them their results."""
    reason = NATIVE.unavailable()
    if reason is not None:
        yield Skipped(_NAME, NATIVE.name, reason)
        return
    runs = [_run(scale.waiters) for _ in range(scale.runs)]
    who = f"{scale.waiters:,} waiters"
    for key, what, bar in (
        ("subscribed", "connections that wait for them", at_most(1)),
        ("connections", "connections of their process", None),
    ):
        yield Figure(_NAME, NATIVE.name, f"{who}: {what}", "", [run[key] for run in runs], bar)
    for key, what, limit in (
        ("before", "memory of their process before", None),
        ("waiting", "memory with everybody waiting", None),
        ("peak", "memory at most", Bar("<", 100.0)),
    ):
        yield Figure(_NAME, NATIVE.name, f"{who}: {what}", "MB", [run[key] / 1e6 for run in runs], limit)
    seconds = [run["seconds"] for run in runs]
    yield Figure(_NAME, NATIVE.name, f"{who}: from the first result to the last", "s", seconds)


def _run(count: int) -> dict[str, float]:
    with NATIVE.place() as place, ThreadPoolExecutor(1) as executor:
        arguments = {"count": count, "url": place.url, "waiting": _WAITING}
        probing = executor.submit(run_probe, "waiters", arguments, place.env)
        _wait_for(place, probing)
        # Nobody else is connected yet.
        clients = [each for each in place.server.client_list() if each["name"] != CLIENT_NAME]
        subscribed = [each for each in clients if each["sub"] != "0" or each["psub"] != "0"]
        with running(NATIVE.worker(WorkerOptions()), place.env) as worker:
            measured: dict[str, float] = _result(probing, worker)
    return {**measured, "connections": len(clients), "subscribed": len(subscribed)}


def _wait_for(place: RedisPlace, probing: Future[Any]) -> None:
    while not place.server.exists(_WAITING):
        if probing.done():
            probing.result()
            raise Failed("The waiting process has ended, and nobody has waited.")
        time.sleep(_LOOK)


def _result(probing: Future[Any], worker: Process) -> dict[str, float]:
    wait_until(worker, probing.done, timeout=_END)
    result: dict[str, float] = probing.result()
    return result
