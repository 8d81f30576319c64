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
    samples: int
    pause: float
    sleepers: int
    idle: float
    #: Tasks in the queue when it is tried whether size matters.
    many: int


FULL = Scale(
    runs=3,
    queued=20_000,
    stock_queued=1_500,
    stock_settings=4,
    enqueued=20_000,
    delayed=2_000,
    samples=200,
    pause=0.03,
    sleepers=10_000,
    idle=5.0,
    many=200_000,
)

QUICK = Scale(
    runs=1,
    queued=10_000,
    stock_queued=2_000,
    stock_settings=1,
    enqueued=10_000,
    delayed=1_000,
    samples=60,
    pause=0.03,
    sleepers=10_000,
    idle=2.0,
    many=50_000,
)
