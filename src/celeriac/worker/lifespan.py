"""The FastAPI app's lifespan around a worker, so that tasks find in ``app.state`` what endpoints find there.

It runs in an asyncio task of its own, as servers run it: context variables that it sets do not get into tasks, and a
task group that it has opened ends where it has begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from celery.utils.log import get_logger

from celeriac.errors import ConfigurationError
from celeriac.webapp import in_worker
from celeriac.worker.shutdown import Shutdown

__all__ = ["app_ready", "app_running"]

logger = get_logger(__name__)

#: Seconds that a lifespan has for its end in a cold shutdown.
_LAST_STEPS = 5.0


async def app_ready(celery: Any) -> None:
    """Find the FastAPI app before a task needs it. Raises ConfigurationError for a setting that names nothing."""
    await asyncio.to_thread(celery.web_apps.prepare)


@asynccontextmanager
async def app_running(celery: Any, shutdown: Shutdown) -> AsyncIterator[None]:
    """Run the app's lifespan while the context lasts, if there is an app and the settings do not say otherwise.

    Raises ConfigurationError when it fails at its start. A shutdown that is requested meanwhile ends the start.
    """
    app = None
    if celery.settings.worker_lifespan:
        app = await asyncio.to_thread(celery.web_apps.find)
    if app is None:
        yield
        return
    lifespan = _Lifespan(app)
    await lifespan.start(shutdown)
    try:
        with celery.web_apps.running(app, lifespan.state):
            yield
    finally:
        await lifespan.end(shutdown)


class _Lifespan:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._started = asyncio.Event()
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.state: Mapping[str, Any] = {}

    async def start(self, shutdown: Shutdown) -> None:
        """Run it up to where the app may serve. Raises ConfigurationError."""
        task = self._task = asyncio.create_task(self._run())
        await _first_of(task, self._started.wait(), shutdown.warm.wait())
        if self._started.is_set():
            task.add_done_callback(self._say_why)
        elif task.done():
            error = task.exception() or RuntimeError("it ended without a yield")
            logger.error("The lifespan of the FastAPI app has failed.", exc_info=error)
            raise ConfigurationError(
                f"The lifespan of the FastAPI app {self._app.title!r} failed at its start: "
                f"{type(error).__name__}: {error}. A worker that is to do without has celeriac_worker_lifespan = False."
            ) from error
        else:
            task.cancel()

    async def end(self, shutdown: Shutdown) -> None:
        """Run the rest of it. In a cold shutdown it is not waited for for long."""
        task = self._task
        assert task is not None
        self._ending.set()
        await _first_of(task, shutdown.cold.wait())
        if not task.done():
            await asyncio.wait((task,), timeout=_LAST_STEPS)
        if not task.done():
            logger.error("The lifespan of the FastAPI app did not end within %g s.", _LAST_STEPS)
            task.cancel()

    async def _run(self) -> None:
        in_worker.set(True)
        async with self._app.router.lifespan_context(self._app) as state:
            self.state = dict(state or {})  # as starlette takes it: what is no mapping fails here
            self._started.set()
            await self._ending.wait()

    def _say_why(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            where = "at its end" if self._ending.is_set() else "while tasks were running"
            logger.error("The lifespan of the FastAPI app failed %s.", where, exc_info=error)


async def _first_of(task: asyncio.Task[None], *events: Any) -> None:
    waiting = [asyncio.create_task(event) for event in events]
    try:
        await asyncio.wait((task, *waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
