"""Waiting for a test's tasks in a thread without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from celeriac.compat import current_execution
from celeriac.errors import ConfigurationError

if TYPE_CHECKING:
    from celeriac.testing.stage import Stage

__all__ = ["inline_send_task", "run_blocking"]


def run_blocking(stage: Stage, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine where the worker is, or with a worker of its own. Raises ConfigurationError on that very loop."""
    loop = stage.workers[-1][0] if stage.workers else None
    here = asyncio._get_running_loop()
    if here is not None and loop in (None, here):
        raise ConfigurationError("This blocks: use `async with in_memory(…)` where an event loop runs.")
    if loop is not None:
        asyncio.run_coroutine_threadsafe(work(), loop).result()
        return

    async def with_worker() -> None:
        async with stage.worker_here():
            await work()

    asyncio.run(with_worker())


def inline_send_task(stage: Stage) -> Callable[..., Any]:
    """What ``.delay()`` and its kin publish with, and which returns when the task has run."""
    send_task = stage.celery.send_task

    def send_and_wait(*args: Any, **options: Any) -> Any:
        result = send_task(*args, **options)
        # Who runs a loop cannot wait for what runs on it.
        if asyncio._get_running_loop() is None:
            # Inside a task not for everything: the task itself is yet to end.
            ids = [result.id] if current_execution() is not None else []
            run_blocking(stage, lambda: stage.wait_for(ids))
        return result

    return send_and_wait
