"""The event loop that an API has: uvicorn takes uvloop's where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

try:
    import uvloop
except ImportError:
    _new_loop = asyncio.new_event_loop
else:
    _new_loop = uvloop.new_event_loop

__all__ = ["run"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """What ``main`` returns."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(main)
