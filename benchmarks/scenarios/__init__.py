"""What is measured. A scenario is one more module here, and one more entry in ``SCENARIOS``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.report import Row
from benchmarks.scale import Scale
from benchmarks.scenarios import (
    bridge,
    endpoint,
    enqueue,
    growth,
    idle,
    latency,
    rabbitmq,
    redis_comparison,
    redis_growth,
    redis_publish,
    redis_throughput,
    redis_waiters,
    sleepers,
    streams,
    throughput,
)

__all__ = ["OPTIONAL", "SCENARIOS"]

#: Name → what measures it, row by row.
SCENARIOS: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "throughput": throughput.measure,
    "enqueue": enqueue.measure,
    "endpoint": endpoint.measure,
    "latency": latency.measure,
    "sleepers": sleepers.measure,
    "idle": idle.measure,
    "growth": growth.measure,
    "redis-throughput": redis_throughput.measure,
    "redis-publish": redis_publish.measure,
    "redis-latency": latency.measure_redis,
    "redis-waiters": redis_waiters.measure,
    "streams": streams.measure,
    "redis-streams": streams.measure_redis,
    "redis-growth": redis_growth.measure,
    "rabbitmq-throughput": rabbitmq.measure,
    "rabbitmq-publish": rabbitmq.measure_publishing,
    "bridge-throughput": bridge.measure,
    "redis-comparison": redis_comparison.measure,
}

#: Those that run only when they are named.
OPTIONAL = frozenset({"growth"})
