"""Enqueue as plain Celery does it: one call after the other, each blocking."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

__all__ = ["probe"]


def probe(app: str, task: str, count: int, warm_up: int = 0) -> dict[str, float]:
    """``task.delay(…)``, ``count`` times, of the tasks in the module ``app``. Wall and processor seconds.

    ``warm_up`` calls more go first and are not counted.
    """
    called: Any = getattr(import_module(app), task)
    for number in range(warm_up):
        called.delay(number)
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        called.delay(number)
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
