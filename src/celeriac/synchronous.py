"""Celery's synchronous ways in, taught what the asyncio ones know: every task has a record, and a revoke lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery.app.amqp import AMQP
from celery.app.control import Control
from celery.utils.log import get_logger
from kombu.utils.functional import maybe_list

from celeriac.brokers.kombu_transports import no_broadcasts
from celeriac.calls import planned
from celeriac.errors import ConfigurationError, StoreUnavailable
from celeriac.planning import active_plan
from celeriac.propagation import owner_in
from celeriac.protocol.codec import dumps_record
from celeriac.protocol.v1 import upgrade
from celeriac.routing import recorded_queue
from celeriac.stores.records import Transition

__all__ = ["DurableControl", "RecordingAMQP"]

logger = get_logger(__name__)


class RecordingAMQP(AMQP):  # type: ignore[misc]
    """Starts the record of each task that Celery's own code publishes (``.delay()``, beat, canvas)."""

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()

        def send_and_record(producer: Any, name: str, message: Any, **options: Any) -> Any:
            self._record(name, message, options)
            return send(producer, name, message, **options)

        return send_and_record

    def _record(self, name: str, message: Any, options: dict[str, Any]) -> None:
        backend = self.app.backend
        if not hasattr(backend, "record_published"):
            return
        first, embed = _first_transition(self, name, message, options)
        try:
            root_id = first.root_id or first.task_id
            ahead = planned(embed, root_id=root_id, at=first.at, owner=first.owner)
            backend.record_published([first, *ahead])
        except StoreUnavailable as exc:
            # The task itself is the broker's business; its worker makes up for the record.
            logger.warning("The store did not record task %s: %s", first.task_id, exc)


def _first_transition(
    amqp: Any, name: str, message: Any, options: dict[str, Any]
) -> tuple[Transition, Mapping[str, Any]]:
    """The record of a message of Celery's, the same that ``enqueue`` starts, and what follows the task."""
    if isinstance(message.body, dict):  # protocol v1
        facts, (args, kwargs, embed) = upgrade(message.headers, message.body)
    else:
        facts, (args, kwargs, embed) = message.headers, message.body
    queue = options.get("queue") or amqp.default_queue
    transition = Transition(
        task_id=facts["id"],
        state="PENDING",
        at=amqp.app._connections.now(),
        name=name,
        queue=recorded_queue(queue, options.get("exchange"), options.get("routing_key") or ""),
        args=dumps_record(args),
        kwargs=dumps_record(kwargs),
        owner=owner_in(options.get("headers") or {}),
        root_id=facts.get("root_id") or facts["id"],
        parent_id=facts.get("parent_id"),
        group_id=facts["group"],
        eta=_epoch(facts["eta"]),
        expires=_epoch(facts["expires"]),
        retries=facts["retries"],
    )
    return transition, embed


def _epoch(moment: str | None) -> float | None:
    if not moment:
        return None
    when = datetime.fromisoformat(moment)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


class DurableControl(Control):  # type: ignore[misc]
    """Celery's remote control; a revoke is also a mark in the store, so that it holds with every worker offline."""

    def revoke(
        self, task_id: str | Iterable[str], destination: Any = None, terminate: bool = False, **options: Any
    ) -> Any:
        """As Celery's. Without ``terminate`` a task that runs goes on."""
        plan = active_plan()
        if plan is not None:
            plan.foreign.append(partial(self.revoke, task_id, destination, terminate, **options))
            return None
        backend = self.app.backend
        if destination is None and hasattr(backend, "request_cancel"):
            backend.request_cancel(list(maybe_list(task_id)), running=terminate)
            if no_broadcasts(self.app.conf.broker_url):
                return None  # the mark is enough
        return super().revoke(task_id, destination, terminate, **options)

    def broadcast(self, command: str, *args: Any, **options: Any) -> Any:
        """As Celery's. Raises ConfigurationError where the broker reaches no worker, who would answer nothing."""
        if reason := no_broadcasts(self.app.conf.broker_url):
            raise ConfigurationError(reason)
        return super().broadcast(command, *args, **options)
