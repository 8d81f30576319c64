"""How much is measured: everything, or a glance."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Scale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of one run. Durations are seconds."""

    #: How often each figure is measured.
    runs: int
    #: Tasks in the queue of a worker of ours, and of a stock worker, which is slower.
    queued: int
    stock_queued: int
    #: How many settings of the stock worker are measured; the best counts.
    stock_settings: int
    enqueued: int
    delayed: int
    #: How often each endpoint gets requests, and for how long.
    endpoint_rounds: int
    endpoint_seconds: float
    samples: int
    pause: float
    sleepers: int
    idle: float
    #: Tasks in the queue when it is tried whether size matters.
    many: int
    #: Tasks in the queue of a worker on Redis: of ours, of a stock worker, of a peer's.
    redis_queued: int
    redis_stock_queued: int
    redis_peer_queued: int
    #: Tasks that a peer publishes.
    redis_peer_published: int
    redis_samples: int
    #: Coroutines that wait for results at once.
    waiters: int
    #: Event streams of one API, events a second for all of them, and for how many seconds.
    streams: int
    stream_rate: int
    stream_seconds: float
    #: Tasks in the queue on Redis when it is tried whether size matters.
    redis_many: int
    #: Tasks in the queue of a stock worker on RabbitMQ.
    rabbitmq_stock_queued: int
    #: Tasks in the queue of a worker on kombu's transports: of ours, of a stock worker.
    bridge_queued: int
    bridge_stock_queued: int
    #: Jobs of the public comparison.
    jobs: int


FULL = Scale(
    runs=3,
    queued=20_000,
    stock_queued=1_500,
    stock_settings=4,
    enqueued=20_000,
    delayed=2_000,
    endpoint_rounds=5,
    endpoint_seconds=5.0,
    samples=200,
    pause=0.03,
    sleepers=10_000,
    idle=5.0,
    many=200_000,
    redis_queued=30_000,
    redis_stock_queued=1_000,
    redis_peer_queued=3_000,
    redis_peer_published=5_000,
    redis_samples=300,
    waiters=10_000,
    streams=5_000,
    stream_rate=1_000,
    stream_seconds=20.0,
    redis_many=1_000_000,
    rabbitmq_stock_queued=5_000,
    bridge_queued=5_000,
    bridge_stock_queued=1_000,
    jobs=20_000,
)

QUICK = Scale(
    runs=1,
    queued=10_000,
    stock_queued=2_000,
    stock_settings=1,
    enqueued=10_000,
    delayed=1_000,
    endpoint_rounds=1,
    endpoint_seconds=3.0,
    samples=60,
    pause=0.03,
    sleepers=10_000,
    idle=2.0,
    many=50_000,
    redis_queued=20_000,
    redis_stock_queued=1_000,
    redis_peer_queued=2_000,
    redis_peer_published=2_000,
    redis_samples=100,
    waiters=10_000,
    streams=5_000,
    stream_rate=1_000,
    stream_seconds=5.0,
    redis_many=50_000,
    rabbitmq_stock_queued=3_000,
    bridge_queued=3_000,
    bridge_stock_queued=600,
    jobs=1_000,
)
