"""The worker on its event loop: what it is put together from, how it starts, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from celery.utils.log import get_logger

from celeriac import propagation
from celeriac.connection import Connection
from celeriac.protocol.exchanges import Binding
from celeriac.routing import bindings_of
from celeriac.worker.actions import Actions
from celeriac.worker.autoscale import Autoscaler
from celeriac.worker.background import follow_cancellations, trim
from celeriac.worker.beginning import until_open
from celeriac.worker.control import ControlThread
from celeriac.worker.ending import HandedBack, LeaseLost
from celeriac.worker.execution import Execution
from celeriac.worker.executor import Executor
from celeriac.worker.fetcher import Fetcher, Patience, Slots
from celeriac.worker.held import Held
from celeriac.worker.intake import Intake
from celeriac.worker.leases import LeaseKeeper
from celeriac.worker.lifespan import app_ready, app_running
from celeriac.worker.profile import TaskProfile
from celeriac.worker.rates import Rates
from celeriac.worker.records import RecordWriter
from celeriac.worker.replies import Replies
from celeriac.worker.reporter import Reporter
from celeriac.worker.runners import Runners
from celeriac.worker.settler import Settler
from celeriac.worker.shutdown import Shutdown
from celeriac.worker.successors import Successors
from celeriac.worker.uploads import sweep_regularly

__all__ = ["Service"]

logger = get_logger(__name__)

#: Seconds for what is left to do when running tasks have been told to stop.
_LAST_STEPS = 5.0

#: Seconds that a worker waits at its start for its remote control.
_CONTROL_STARTS = 2.0


class Service:
    """One worker, for one run of its loop.

    ``controller`` is Celery's ``WorkController`` with its pool; ``consumer`` is what remote control sees, and what
    Celery's signals name as sender. ``heartbeat_interval`` is in seconds; ``None`` sends no heartbeats.
    ``mingles``: whether to ask the other workers what was revoked.
    """

    def __init__(
        self,
        app: Any,
        controller: Any,
        consumer: Any,
        *,
        heartbeat_interval: float | None = 2.0,
        mingles: bool = False,
    ) -> None:
        self.app = app
        self._controller = controller
        self._consumer = consumer
        self._heartbeat_interval = heartbeat_interval
        #: Says which queues to work on, if not those of the app.
        self.asked_queues: Callable[[], Sequence[str]] | None = None
        self._mingles = mingles
        self.pool = controller.pool
        self.held = Held()
        #: What works on deliveries now, a task of the loop for each.
        self.runners: set[asyncio.Task[None]] = set()
        self.shutdown = Shutdown(controller.hostname, app.conf.worker_soft_shutdown_timeout)
        self.actions = Actions(self)

    async def run(self, *, listen_to_signals: bool, with_lifespan: bool = False) -> int:
        """Work until a shutdown is requested. Returns the exit code.

        ``with_lifespan``: whether this is a process of its own, in which nobody else runs the FastAPI app's lifespan.
        """
        propagation.reset()  # a worker in an API's process may be started by anybody's code
        if with_lifespan:
            await until_open(self.app, self.shutdown, listen_to_signals=listen_to_signals)
            if self.shutdown.warm.is_set():
                return int(self.shutdown.exitcode)
        async with self.app:
            connection = await self.app._connections.here()
            with self.shutdown.on_signals() if listen_to_signals else contextlib.nullcontext():
                await app_ready(self.app)
                lifespan = app_running(self.app, self.shutdown) if with_lifespan else contextlib.nullcontext()
                async with lifespan:
                    if not self.shutdown.warm.is_set():  # asked to stop while the lifespan began
                        await self._serve(connection)
        return int(self.shutdown.exitcode)

    def _build(self, connection: Connection) -> None:
        self.slots = Slots(self.pool.limit)
        self.rates = Rates(self.slots, disabled=bool(self._controller.disable_rate_limits))
        self.actions.on_rate_limit(None)
        self.reporter = Reporter(self._consumer)
        self._leases = LeaseKeeper(connection.broker, self._on_lost)
        self._records = RecordWriter(connection.store, self.app._connections.now)
        self._settler = Settler(connection.broker, self._leases.release)
        self._replies = self._make_replies(connection)
        self.executor = self._make_executor(connection)
        self.intake = self._make_intake(connection)
        self.fetcher = self._make_fetcher(connection, self._make_runners(connection))
        self._control = self._make_control(connection)
        self.reporter.send_event = self._sender_of_events

    def _make_replies(self, connection: Connection) -> Replies | None:
        if not self.app.settings.answers:
            return None
        return Replies(self.app.backend, connection.broker, connection.store)

    def _make_executor(self, connection: Connection) -> Executor:
        settings = self.app.settings
        successors = Successors(
            self.app, connection.calls, connection.publisher, connection.store, self._replies
        )
        return Executor(
            make_profile=self._profile,
            calls=connection.calls,
            successors=successors,
            leases=self._leases,
            settler=self._settler,
            reporter=self.reporter,
            threads=self.pool.threads,
            on_ended=self._on_ended,
            delivery_limit=settings.delivery_limit,
            unknown_task_grace=settings.unknown_task_grace,
            stubs=self.app._stubs,
            replies=self._replies,
        )

    def _make_intake(self, connection: Connection) -> Intake:
        return Intake(
            self.app,
            self._controller.hostname,
            connection.store,
            records=self._records,
            settler=self._settler,
            reporter=self.reporter,
        )

    def _make_runners(self, connection: Connection) -> Runners:
        can = connection.broker.capabilities
        return Runners(
            self.runners,
            self.intake,
            self.executor,
            slots=self.slots,
            rates=self.rates,
            held=self.held,
            leases=self._leases,
            settler=self._settler,
            gives_back=can.delivery_count and not can.lease,
        )

    def _make_fetcher(self, connection: Connection, runners: Runners) -> Fetcher:
        return Fetcher(
            connection.broker,
            self.queues,
            self.slots,
            runners.start,
            Patience.of(self.app.settings),
            self._bindings,
            self._consumer.cancel_task_queue,
        )

    def _make_control(self, connection: Connection) -> ControlThread:
        return ControlThread(
            self._consumer,
            app=self.app,
            hostname=self._controller.hostname,
            executions=self.actions,
            loop=asyncio.get_running_loop(),
            heartbeat_interval=self._heartbeat_interval,
            enable_events=bool(self._controller.task_events),
            mingles=self._mingles,
            broadcasts=connection.broker.capabilities.fanout,
        )

    def _sender_of_events(self) -> Callable[..., None] | None:
        return self._control.send_event if self._control.events_enabled else None

    def refresh(self, task: Any) -> None:
        """A task's settings have changed."""
        self.executor.refresh(self._profile(task))

    def _profile(self, task: Any) -> TaskProfile:
        self.rates.read(task)  # it may have been registered after the start
        return TaskProfile(
            task,
            validate=self.app.settings.validate_arguments,
            time_limit=self._controller.time_limit,
            soft_time_limit=self._controller.soft_time_limit,
        )

    async def _serve(self, connection: Connection) -> None:
        self._build(connection)
        self._leases.start()
        self._control.start()
        # Who reads that the worker is ready may control it at once, and has heard of it before.
        await self._control.started(_CONTROL_STARTS)
        fetching = asyncio.create_task(self.fetcher.run())
        background = [
            asyncio.create_task(follow_cancellations(connection.store, self.held)),
            asyncio.create_task(trim(connection.store)),
            asyncio.create_task(sweep_regularly(self.app, connection.store)),
            asyncio.create_task(self.shutdown.watch_celery()),
        ]
        autoscaler = getattr(self._controller, "autoscaler", None)
        if isinstance(autoscaler, Autoscaler):
            scaling = autoscaler.run(self.slots, self.actions.waiting, self.actions.on_pool_resize)
            background.append(asyncio.create_task(scaling))
        requested = asyncio.create_task(self.shutdown.warm.wait())
        try:
            self._consumer.on_ready()
            await asyncio.wait((fetching, requested), return_when=asyncio.FIRST_COMPLETED)
            self.fetcher.stop()
            await asyncio.wait((fetching,), timeout=_LAST_STEPS)
            if fetching.done():
                await fetching
        finally:
            requested.cancel()
            await self._finish()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._leases.stop()
            await asyncio.to_thread(self._control.stop)

    # -- what it works on ----------------------------------------------------------------------------------------

    def queues(self) -> Sequence[str]:
        """The names of the queues that the worker consumes from, as of now."""
        if self.asked_queues is not None:
            return self.asked_queues()
        return list(self.app.amqp.queues.consume_from)

    def _bindings(self) -> list[Binding]:
        queues = self.app.amqp.queues.consume_from.values()
        return [binding for queue in queues for binding in bindings_of(queue)]

    def _on_ended(self, execution: Execution) -> None:
        """The function's slot is free while its result is stored."""
        execution.concluding = self.slots.release_early()

    # -- the way out ---------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Let running tasks finish within the grace period, then hand them back."""
        for execution in self.rates.waiting:
            execution.halt(HandedBack())
        if self.runners:
            grace = self.app.settings.shutdown_grace
            cold = asyncio.create_task(self.shutdown.cold.wait())
            ending = asyncio.ensure_future(asyncio.wait(self.runners))
            await asyncio.wait((cold, ending), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            cold.cancel()
            ending.cancel()
        if self.runners:
            logger.warning("Handing back %d tasks that are still running.", len(self.runners))
            for execution in self.held:
                execution.halt(HandedBack())
            await asyncio.wait(self.runners, timeout=_LAST_STEPS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_STEPS):
                await self._records.drain()
                if self._replies is not None:
                    await self._replies.drain()
                await self._settler.drain()

    # -- what others tell the worker -----------------------------------------------------------------------------

    def _on_lost(self, tags: Collection[str]) -> None:
        for tag in tags:
            if execution := self.held.get(tag):
                execution.halt(LeaseLost())
