"""A long queue on Redis: publishing to it and receiving from it may cost no more than with a short one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.figures import Bar, Figure, Skipped, at_least, at_most
from benchmarks.processes import run_probe
from benchmarks.redis_server import redis_running
from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios.draining import Drained, drain
from benchmarks.systems import NATIVE_BARE, RedisPlace

__all__ = ["measure"]

_NAME = "redis-growth"

#: Tasks in a queue that counts as short.
_FEW = 100

_REQUESTS = 64

#: How often both are published to in one round.
_PAIRS = 3


@dataclass(slots=True)
class _Queue:
    """What was measured of one queue: processor seconds for each task published to it, and what workers did."""

    waiting: int
    publishing: list[float] = field(default_factory=list)
    drained: list[Drained] = field(default_factory=list)
    server_memory: float = 0.0


def measure(scale: Scale) -> Iterator[Row]:
    """The long queue and the short one are in two databases of one server, and are published to in turn."""
    reason = NATIVE_BARE.unavailable()
    if reason is not None:
        yield Skipped(_NAME, NATIVE_BARE.name, reason)
        return
    count = scale.enqueued
    short, long = _Queue(_FEW), _Queue(scale.redis_many)
    with redis_running() as url, NATIVE_BARE.at(url.removesuffix("/0") + "/1") as far:
        far.fill("noop", long.waiting, 1)
        for _ in range(scale.runs):
            for _ in range(_PAIRS):
                with NATIVE_BARE.at(url) as near:
                    near.fill("noop", short.waiting, 1)
                    short.publishing.append(_publish(near, count))
                    long.publishing.append(_publish(far, count))
            with NATIVE_BARE.at(url) as near:
                near.fill("noop", short.waiting + count, 1)
                short.drained.append(drain(NATIVE_BARE, near, short.waiting + count))
        far.filled()
        long.server_memory = float(far.server.info("memory")["used_memory"])
        long.drained.append(drain(NATIVE_BARE, far, long.waiting + len(long.publishing) * count))
    for queue in (short, long):
        yield from _rows(queue, count)
    yield _figure("memory of Redis with the long queue", "MB", [long.server_memory / 1e6])
    yield from _ratios(short, long)


def _rows(queue: _Queue, count: int) -> Iterator[Row]:
    queued = f"{queue.waiting:,} queued"
    what = f"{queued}: publishing {count:,} more, processor time"
    yield _figure(what, "µs/task", [seconds * 1e6 for seconds in queue.publishing])
    yield _figure(f"{queued}, and those: worker", "tasks/s", [run.rate for run in queue.drained])
    cpu = [run.cpu_seconds / run.count * 1e6 for run in queue.drained]
    yield _figure(f"{queued}, and those: processor time of the worker", "µs/task", cpu)
    memory = [run.peak_memory / 1e6 for run in queue.drained]
    yield _figure(f"{queued}, and those: memory of the worker at most", "MB", memory)


def _ratios(short: _Queue, long: _Queue) -> Iterator[Row]:
    cost = [one / other for one, other in zip(long.publishing, short.publishing, strict=True)]
    yield _figure("cost of publishing, long queue to short", "times", cost, at_most(1.1))
    [whole] = long.drained
    speed = whole.rate / statistics.median(run.rate for run in short.drained)
    yield _figure("speed of the worker, long queue to short", "times", [speed], at_least(0.9))
    memory = whole.peak_memory / statistics.median(run.peak_memory for run in short.drained)
    yield _figure("memory of the worker, long queue to short", "times", [memory], at_most(1.25))


def _figure(what: str, unit: str, values: list[float], bar: Bar | None = None) -> Figure:
    return Figure(_NAME, NATIVE_BARE.name, what, unit, values, bar)


def _publish(place: RedisPlace, count: int) -> float:
    arguments = {"app": NATIVE_BARE.app, "count": count, "requests": _REQUESTS}
    seconds: float = run_probe("publish", arguments, place.env)["cpu_seconds"]
    return seconds / count
