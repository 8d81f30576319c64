"""Celery's synchronous ways in, taught what the asyncio ones know: every task has a record, and a revoke lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any

from celery.app.amqp import AMQP
from celery.app.control import Control
from celery.utils.log import get_logger
from kombu.utils.functional import maybe_list

from celeriac.calls import planned
from celeriac.errors import StoreUnavailable
from celeriac.planning import active_plan
from celeriac.protocol.codec import dumps
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
        if not hasattr(backend, "record_published") or "id" not in message.headers:
            return
        try:
            first = _first_transition(self.app, name, message, options)
            root_id = first.root_id or first.task_id
            backend.record_published([first, *planned(message.body[2], root_id=root_id, at=first.at)])
        except StoreUnavailable as exc:
            # The task itself is the broker's business; its worker makes up for the record.
            logger.warning("The store did not record task %s: %s", message.headers["id"], exc)


def _first_transition(app: Any, name: str, message: Any, options: dict[str, Any]) -> Transition:
    headers = message.headers
    queue = options.get("queue") or options.get("routing_key") or app.conf.task_default_queue
    args, kwargs, _embed = message.body
    return Transition(
        task_id=headers["id"],
        state="PENDING",
        at=time.time(),
        name=name,
        queue=getattr(queue, "name", queue),
        args=_text(args),
        kwargs=_text(kwargs),
        root_id=headers["root_id"],
        parent_id=headers["parent_id"],
        group_id=headers["group"],
        eta=_epoch(headers["eta"]),
        expires=_epoch(headers["expires"]),
        retries=headers["retries"],
    )


def _text(value: Any) -> str:
    try:
        return dumps(value)
    except TypeError:
        return dumps(repr(value))  # for pickle's eyes only


def _epoch(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None


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
        return super().revoke(task_id, destination, terminate, **options)
