"""The systems that are compared: one module each, or an entry in one that has several of a kind."""

from __future__ import annotations

from benchmarks.systems.base import Place, System, WorkerOptions
from benchmarks.systems.embedded import EMBEDDED
from benchmarks.systems.native import NATIVE, NATIVE_BARE
from benchmarks.systems.peers import PEERS
from benchmarks.systems.redis import RedisPlace, RedisSystem
from benchmarks.systems.stock import STOCK, STOCK_RESULTS, STOCK_THREADS

__all__ = [
    "EMBEDDED",
    "NATIVE",
    "NATIVE_BARE",
    "PEERS",
    "STOCK",
    "STOCK_RESULTS",
    "STOCK_THREADS",
    "Place",
    "RedisPlace",
    "RedisSystem",
    "System",
    "WorkerOptions",
]
