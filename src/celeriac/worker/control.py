"""Celery's remote control: ``celery inspect``, ``celery control`` and Flower, answered beside the event loop.

The commands are Celery's own (``celery.worker.control``), and any that the user registered; they run in a thread
over kombu, see the worker through :class:`~celeriac.worker.facade.ConsumerFacade` and
:class:`~celeriac.worker.mirror.Mirror`, and change it through :class:`~celeriac.worker.facade.WorkerActions`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import Any

from celeriac.worker.commands import COMMANDS, CommandNode
from celeriac.worker.compat import check_subscription
from celeriac.worker.connected import ConnectedThread
from celeriac.worker.events import EventPublisher
from celeriac.worker.facade import ConsumerFacade
from celeriac.worker.mingle import mingle
from celeriac.worker.mirror import ExecutionsView, Mirror

__all__ = ["ControlThread"]

logger = logging.getLogger("celeriac.worker.control")

#: Seconds until the thread looks whether it should end; a command wakes it at once.
DRAIN = 0.25
#: The same where kombu looks into the broker once per wait (SQS, MongoDB, …), and each look costs something.
POLLED_DRAIN = 1.0
#: Seconds for the first wait.
FIRST_DRAIN = 0.1
#: Seconds between two looks into a broker that cannot wake us but is cheap to look into: a command is not urgent.
LOCAL_POLL = 0.2
#: ``driver_type`` of these transports.
LOCAL = frozenset({"memory", "sqlite"})
#: Seconds between two health checks of an idle connection.
HEALTH_CHECK = 25.0


class _CommandListener(ConnectedThread):
    """Receives commands and runs them one after the other."""

    def __init__(self, facade: ConsumerFacade, node: CommandNode, *, mingles: bool) -> None:
        super().__init__("remote control")
        self.facade = facade
        self.node = node
        self.listening = threading.Event()
        self._mingles = mingles
        #: Set once it listens, or will not for now.
        self.tried = threading.Event()
        self._channel_errors: tuple[type[BaseException], ...] = ()

    def connect(self) -> Any:
        app = self.facade.app
        return app.connection_for_read(heartbeat=app.conf.broker_heartbeat)

    def serve(self, connection: Any) -> None:
        if not connection.supports_exchange_type("fanout"):
            logger.warning("remote control: off, %s cannot broadcast", connection.transport.driver_name)
            self.tried.set()
            self.stopping.wait()
            return
        wait = DRAIN
        transport = connection.transport
        if transport.driver_type in LOCAL:
            transport.polling_interval = LOCAL_POLL
        elif (getattr(transport, "polling_interval", None) or 0) > DRAIN:
            wait = POLLED_DRAIN
        self._channel_errors = (*connection.connection_errors, *connection.channel_errors)
        self.node.channel = connection.channel()
        self.facade.connection = connection
        self._declare_queues(self.node.channel)
        consumer = self.node.listen(callback=self._on_message)
        try:
            if transport.driver_type == "redis":
                # It is the first drain that subscribes, and ends with the confirmation.
                with suppress(TimeoutError):
                    connection.drain_events(timeout=FIRST_DRAIN)
            self.healthy()
            self.listening.set()
            self.tried.set()
            if self._mingles:
                self._mingles = False
                facade = self.facade
                mingle(
                    facade.app,
                    facade.hostname,
                    lambda ids: facade.post(facade.actions.on_merge_revoked, ids),
                )
            self._drain(connection, wait)
        finally:
            self.listening.clear()
            self.facade.connection = None
        consumer.cancel()
        self.node.channel.close()

    def _declare_queues(self, channel: Any) -> None:
        """Bind the worker's queues, so that clients who know the exchange alone reach them; as a stock worker does."""
        for queue in list(self.facade.app.amqp.queues.consume_from.values()):
            queue(channel).declare()

    def _drain(self, connection: Any, wait: float) -> None:
        checked = time.monotonic()
        heartbeats = bool(connection.heartbeat) and connection.supports_heartbeats
        while not self.stopping.is_set():
            with suppress(TimeoutError):
                connection.drain_events(timeout=wait)
            if heartbeats:
                connection.heartbeat_check()
            if time.monotonic() - checked > HEALTH_CHECK:
                checked = time.monotonic()
                check_subscription(connection.transport)

    def _on_message(self, body: Any, message: Any) -> None:
        # Clients' clocks are rarely worth adjusting to; a command is an event all the same.
        self.facade.app.clock.forward()
        try:
            self.node.handle_message(body, message)
        except SystemExit:
            # WorkerShutdown, which the shutdown command raises.
            self.facade.post(self.facade.actions.on_shutdown)
        except self._channel_errors:
            raise
        except Exception:
            logger.exception("Control command error")


class ControlThread:
    """Remote control, events and heartbeats of one worker.

    Two daemon threads, each with a connection of its own: one waits for commands, one publishes events.

    Args:
        facade: the worker in the eyes of commands.
        app: the Celery app.
        hostname: the worker's node name.
        executions: the worker's executions and counts.
        loop: the event loop that the worker's callbacks are called on.
        heartbeat_interval: seconds between heartbeats; ``None`` sends neither these nor online and offline events.
        enable_events: whether task events are on from the start (``celery worker -E``).
        remote_control: whether to listen for commands; by default what ``worker_enable_remote_control`` says.
        mingles: whether to ask the other workers for what they know, once commands are heard.
        broadcasts: whether the broker reaches all workers; without, there are neither commands nor events.
    """

    def __init__(
        self,
        facade: ConsumerFacade,
        *,
        app: Any,
        hostname: str,
        executions: ExecutionsView,
        loop: asyncio.AbstractEventLoop,
        heartbeat_interval: float | None = 2.0,
        enable_events: bool = False,
        remote_control: bool | None = None,
        mingles: bool = False,
        broadcasts: bool = True,
    ) -> None:
        self.events = EventPublisher(
            app,
            hostname,
            load=lambda: {
                "active": executions.active_count(),
                "processed": sum(dict(executions.total_count()).values()),
            },
            heartbeat_interval=heartbeat_interval,
            task_events=enable_events,
        )
        facade.loop = loop
        facade.event_dispatcher = self.events
        self._facade = facade
        self._node = CommandNode(
            facade,
            Mirror(executions, app, self._terminate),
            COMMANDS,
        )
        self._listener = _CommandListener(facade, self._node, mingles=mingles)
        enabled = app.conf.worker_enable_remote_control if remote_control is None else remote_control
        self._threads: list[ConnectedThread] = [self.events, self._listener] if enabled else [self.events]
        if not enabled:
            self._listener.tried.set()
        if not broadcasts:
            logger.info("remote control: off, the broker cannot broadcast")
            self._threads = []
            self.events.enabled = False
            self._listener.tried.set()
            self.events.tried.set()
        #: Set while commands are heard.
        self.listening = self._listener.listening
        #: Queue one event; see :meth:`EventPublisher.send_event`. Bound here to save a call per event.
        self.send_event = self.events.send_event

    @property
    def events_enabled(self) -> bool:
        """Whether anybody wants task events: look before putting their fields together."""
        return self.events.enabled and "task" in self.events.groups

    @property
    def alive(self) -> bool:
        """Whether any of the threads still runs."""
        return any(thread.alive for thread in self._threads)

    def start(self) -> None:
        """Start the threads; returns at once and never fails for want of a broker."""
        for thread in self._threads:
            thread.start()

    async def started(self, timeout: float) -> None:
        """Return when commands are heard and the first heartbeat is sent, which in Celery come before ``worker_ready``.

        After so many seconds in any case; and it does not wait for what never will be.
        """
        await asyncio.to_thread(self._wait_until_tried, timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """Publish the waiting events and ``worker-offline``, and close the connections.

        Blocks up to ``timeout`` seconds (half a second with a healthy broker): call it in a thread or after the
        loop. What has not ended by then dies with the process.
        """
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.request_stop()
        for thread in self._threads:
            if not thread.join(deadline - time.monotonic()):
                logger.debug("%s: still busy after %.1f s", thread.name, timeout)

    def _wait_until_tried(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for tried in (self._listener.tried, self.events.tried):
            tried.wait(max(0.0, deadline - time.monotonic()))

    def _terminate(self, task_id: str, signal: Any) -> None:
        # The ids of a revoke are with the worker already.
        if task_id not in self._node.revoking:
            self._facade.post(self._facade.actions.on_terminate, (task_id,), signal)
