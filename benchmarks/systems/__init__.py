"""The systems that are compared. A peer is one more module here, and one more name in ``SYSTEMS``."""

from __future__ import annotations

from benchmarks.systems.base import Place, System, WorkerOptions
from benchmarks.systems.embedded import EMBEDDED
from benchmarks.systems.stock import STOCK_THREADS

__all__ = ["EMBEDDED", "STOCK_THREADS", "SYSTEMS", "Place", "System", "WorkerOptions"]

SYSTEMS: tuple[System, ...] = (EMBEDDED, STOCK_THREADS)
