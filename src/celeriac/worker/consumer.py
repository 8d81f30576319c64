"""Celery's ``worker_consumer``: what ``celery worker`` starts after its banner."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from celery.bootsteps import CLOSE, RUN, TERMINATE
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer as CeleryConsumer

from celeriac.errors import CeleriacError
from celeriac.worker import loop
from celeriac.worker.facade import ConsumerFacade
from celeriac.worker.garbage import freeze_what_stays
from celeriac.worker.pool import TaskPool
from celeriac.worker.service import Service

__all__ = ["Consumer", "create_consumer"]

logger = get_logger(__name__)


def create_consumer(*args: Any, **options: Any) -> Any:
    """The consumer for the pool that was chosen: ours, and Celery's own for Celery's pools (``-P processes``)."""
    if isinstance(options.get("pool"), TaskPool):
        return Consumer(*args, **options)
    return CeleryConsumer(*args, **options)


class Consumer(ConsumerFacade):
    """Runs the worker's service on an event loop of its own; remote control sees it as ``state.consumer``."""

    def __init__(
        self,
        _on_task_request: Any,
        init_callback: Any = None,
        hostname: str | None = None,
        app: Any = None,
        controller: Any = None,
        initial_prefetch_count: int = 0,
        worker_options: Mapping[str, Any] | None = None,
        **_options: Any,
    ) -> None:
        self._init_callback = init_callback
        options = worker_options or {}
        interval = (
            None if options.get("without_heartbeat") else float(options.get("heartbeat_interval") or 2.0)
        )
        # A worker in another program has no options, and starts without asking around.
        mingles = options.get("without_mingle") is False
        self.service = Service(app, controller, self, heartbeat_interval=interval, mingles=mingles)
        super().__init__(
            app=app,
            hostname=hostname or controller.hostname,
            controller=controller,
            actions=self.service.actions,
            initial_prefetch_count=initial_prefetch_count,
        )

    def start(self) -> None:
        """Work until told to stop. Raises WorkerShutdown or WorkerTerminate, by which Celery's worker ends."""
        freeze_what_stays()
        try:
            # In another thread, as ``celery.contrib.testing.worker`` starts one, a process's signals cannot be heard.
            in_main = threading.current_thread() is threading.main_thread()
            exitcode = loop.run(self.service.run(listen_to_signals=in_main, with_lifespan=True))
        except CeleriacError as exc:
            logger.critical("The worker stops: %s", exc)
            raise WorkerShutdown(1) from None
        if self.service.shutdown.cold.is_set():
            raise WorkerTerminate(exitcode)
        raise WorkerShutdown(exitcode)

    def on_ready(self) -> None:
        """The service consumes: Celery says "ready" and sends ``worker_ready``."""
        self.blueprint.state = RUN
        if self._init_callback is not None:
            self._init_callback(self)

    def close(self) -> None:
        """Celery's worker begins to close; the service has its own signals."""
        self.blueprint.state = CLOSE

    def stop(self) -> None:
        """Celery's worker has stopped."""
        self.blueprint.state = TERMINATE

    terminate = stop

    def shutdown(self) -> None:
        """Nothing is left to do: the loop has ended."""
