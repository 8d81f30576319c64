"""What Celery's remote control commands see in place of ``celery.worker.consumer.Consumer``.

The commands run in a thread. Everything here either answers from what is safe to read there, or posts a callback of
:class:`WorkerActions` to the event loop and returns at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

from kombu.utils.url import maybe_sanitize_url

from celeriac.brokers.base import Delayed
from celeriac.errors import BrokerUnavailable
from celeriac.worker.compat import Blueprint

__all__ = ["ConsumerBlueprint", "ConsumerFacade", "PoolFacade", "WorkerActions"]

logger = logging.getLogger("celeriac.worker.control")


#: Seconds for an answer of the event loop.
_PATIENCE = 5.0


class WorkerActions(Protocol):
    """What remote control asks of the worker. Every ``on_`` method is called on the event loop and must not block."""

    def on_revoke(self, ids: Sequence[str], terminate: bool, signal: str | int | None) -> None:
        """These tasks are not to run, and with ``terminate`` not to go on; Celery's ``revoked`` set has them too."""

    def on_merge_revoked(self, ids: Sequence[str]) -> None:
        """Another worker knows that these tasks were revoked."""

    def on_terminate(self, ids: Sequence[str], signal: str | int | None) -> None:
        """These tasks are not to go on; they were not named by a revoke."""

    def on_add_queue(self, name: str) -> None:
        """Consume from this queue as well; it is selected in ``app.amqp.queues`` already."""

    def on_cancel_queue(self, name: str) -> None:
        """Consume from this queue no longer; it is deselected already."""

    def on_shutdown(self) -> None:
        """Shut down warmly."""

    def on_cancel_active(self) -> None:
        """A cold shutdown: stop what runs, so that it is delivered again."""

    def on_pool_grow(self, n: int) -> None:
        """Add ``n`` slots."""

    def on_pool_shrink(self, n: int) -> None:
        """Take away ``n`` slots; at least one stays."""

    def on_rate_limit(self, task: str | None) -> None:
        """The task's ``rate_limit`` has changed; ``None``: any may have."""

    def on_time_limit(self, task: str) -> None:
        """The task's ``time_limit`` and ``soft_time_limit`` have changed."""

    async def delayed(self) -> Sequence[Delayed]:
        """What waits for its time in the worker's queues."""

    def describe(self, delayed: Sequence[Delayed]) -> Sequence[dict[str, Any]]:
        """The same as ``inspect scheduled`` shows it. Called in remote control's thread."""


class PoolFacade:
    """The worker's pool, with growing and shrinking posted to the event loop; the rest is the pool's own."""

    flush = None

    def __init__(self, facade: ConsumerFacade) -> None:
        self._facade = facade

    def __getattr__(self, name: str) -> Any:
        return getattr(self._facade.controller.pool, name)

    @property
    def num_processes(self) -> int:
        return int(self._facade.controller.pool.num_processes)

    def grow(self, n: int = 1) -> None:
        if n < 1:
            raise ValueError("the number must be 1 or more")
        self._facade.post(self._facade.actions.on_pool_grow, n)

    def shrink(self, n: int = 1) -> None:
        if not 1 <= n < self.num_processes:
            raise ValueError(f"cannot shrink a pool of {self.num_processes} by {n}: at least one slot stays")
        self._facade.post(self._facade.actions.on_pool_shrink, n)

    def terminate_job(self, pid: int | None, signal: Any = None) -> None:
        """Nothing: there is no process per task, and signalling this one would end them all."""

    def restart(self) -> None:
        raise NotImplementedError("tasks run inside the worker's own process; restart the worker instead")


class ConsumerBlueprint(Blueprint):  # type: ignore[misc]
    """Answers for the consumer in ``inspect stats``; has no steps. ``state`` is the worker's to set."""

    name = "Consumer"

    def __init__(self, facade: ConsumerFacade) -> None:
        super().__init__()
        self._facade = facade

    def info(self, parent: Any) -> dict[str, Any]:
        """The same keys as a stock consumer's steps: the broker without its password, and the prefetch count."""
        app = self._facade.app
        broker = app.connection_for_read(heartbeat=app.conf.broker_heartbeat).info()
        broker.pop("password", None)
        alternates = broker.get("alternates")
        if isinstance(alternates, (list, tuple)):
            broker["alternates"] = [
                maybe_sanitize_url(url) if isinstance(url, str) else url for url in alternates
            ]
        elif isinstance(alternates, str):
            broker["alternates"] = maybe_sanitize_url(alternates)
        return {"broker": broker, "prefetch_count": self._facade.qos.value}


@dataclass(slots=True)
class _TaskConsumer:
    """``state.consumer.task_consumer``: the queues that the worker consumes from."""

    app: Any

    @property
    def queues(self) -> list[Any]:
        return list(self.app.amqp.queues.consume_from.values())

    def consuming_from(self, queue: str) -> bool:
        return queue in self.app.amqp.queues.consume_from

    def cancel(self) -> None:
        """Nothing: receiving ends with the worker's own shutdown."""


@dataclass(slots=True)
class _QoS:
    """``state.consumer.qos``: the worker receives for free slots only, so nobody adjusts a prefetch count."""

    facade: ConsumerFacade

    @property
    def value(self) -> int:
        return self.facade.pool.num_processes

    def increment_eventually(self, n: int = 1) -> None: ...

    def decrement_eventually(self, n: int = 1) -> None: ...


@dataclass(eq=False)
class ConsumerFacade:
    """Handed to remote control commands as ``state.consumer``.

    Args:
        app: the Celery app.
        hostname: the worker's node name.
        controller: Celery's ``WorkController``; its ``consumer.blueprint`` should be this object's
            :attr:`blueprint` for ``inspect stats`` to work.
        actions: the worker's callbacks.
        initial_prefetch_count: what Celery worked out from ``worker_prefetch_multiplier``; nothing follows from it.
    """

    app: Any
    hostname: str
    controller: Any
    actions: WorkerActions
    initial_prefetch_count: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    event_dispatcher: Any = None
    #: The connection that commands arrive on; safe inside a command, and nowhere else.
    connection: Any = None
    hub: None = None
    gossip: None = None
    heart: None = None
    #: The task that the command under way is about.
    subject: str | None = None
    strategies: dict[str, Any] = field(default_factory=dict)
    task_buckets: dict[str, Any] = field(default_factory=lambda: defaultdict(lambda: None))

    def __post_init__(self) -> None:
        self.pid = os.getpid()
        self.pool = PoolFacade(self)
        self.qos = _QoS(self)
        self.task_consumer = _TaskConsumer(self.app)
        self.blueprint = ConsumerBlueprint(self)

    @property
    def timer(self) -> Any:
        """Celery's timer where the worker has one; without it, one with nothing scheduled."""
        timer = getattr(self.controller, "timer", None)
        return timer if timer is not None else SimpleNamespace(schedule=SimpleNamespace(queue=()))

    def post(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Have the event loop call this; never waits, and does nothing once the loop has ended."""
        if self.loop is None or self.loop.is_closed():
            logger.debug("remote control: no event loop for %r", callback)
            return
        self.loop.call_soon_threadsafe(partial(self._call, callback, *args, **kwargs))

    def call_soon(self, p: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Celery's name for :meth:`post`."""
        self.post(p, *args, **kwargs)

    @staticmethod
    def _call(callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            callback(*args, **kwargs)
        except Exception:
            logger.exception("remote control: %r failed", callback)

    def add_task_queue(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        """Select the queue, declaring it in the app if it is new, and consume from it. Runs on the event loop."""
        queues = self.app.amqp.queues
        if self.task_consumer.consuming_from(queue):
            return
        # `in`, because reading a missing queue would create it.
        if queue in queues:
            selected = queues.select_add(queues[queue])
        else:
            # As one that is made because somebody publishes to it.
            options.setdefault("queue_arguments", queues.new_missing(queue).queue_arguments)
            selected = queues.select_add(
                queue,
                exchange=exchange or queue,
                exchange_type=exchange_type or "direct",
                routing_key=routing_key,
                **options,
            )
        logger.info("Started consuming from %s", selected.name)
        self.actions.on_add_queue(selected.name)

    def cancel_task_queue(self, queue: str) -> None:
        """Deselect the queue and consume from it no longer. Runs on the event loop."""
        queues = self.app.amqp.queues
        alias: Mapping[str, Any] = queues.aliases
        name = alias[queue].name if queue in alias else queue
        if not self.task_consumer.consuming_from(name):
            return
        logger.info("Canceling queue %s", name)
        queues.deselect(queue)
        self.actions.on_cancel_queue(name)

    def scheduled(self) -> list[dict[str, Any]]:
        """What waits in the worker's queues for its time, as ``inspect scheduled`` shows it. Not for the event loop."""
        if self.loop is None or self.loop.is_closed():
            return []
        looking = asyncio.run_coroutine_threadsafe(self.actions.delayed(), self.loop)
        try:
            return list(self.actions.describe(looking.result(_PATIENCE)))
        except (BrokerUnavailable, TimeoutError) as exc:
            logger.warning("remote control: the broker does not tell what is delayed: %r", exc)
            return []

    def update_strategies(self) -> None:
        """Nothing: tasks are looked up when a message arrives."""

    def reset_rate_limits(self) -> None:
        """Have the worker read the rate limit of its tasks again."""
        self.post(self.actions.on_rate_limit, self.subject)

    def _update_prefetch_count(self, index: int = 0) -> None:
        """Nothing: the pool's size is the prefetch count."""

    def cancel_active_requests(self) -> None:
        """Stop what runs, for a cold shutdown."""
        self.post(self.actions.on_cancel_active)
