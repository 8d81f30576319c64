"""Run a coroutine, or an async generator, to its end where nobody awaits: in Celery's own, synchronous tracer."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["run_to_end"]


def run_to_end(value: Any) -> Any:
    """The result of ``value`` if it can be awaited; ``None`` of an async generator; else ``value`` itself.

    Under a running loop it runs in a thread of its own, and the caller waits for it.
    """
    if inspect.isasyncgen(value):
        value = _exhaust(value)
    if not inspect.isawaitable(value):
        return value
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_await(value))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, _await(value)).result()


async def _await(value: Awaitable[Any]) -> Any:
    return await value


async def _exhaust(values: AsyncIterator[Any]) -> None:
    async for _ in values:
        pass
