"""What remote control does to a worker, and what it sees of one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from celery.exceptions import TaskRevokedError
from celery.platforms import signals

from celeriac.brokers.base import Broker, Delayed
from celeriac.worker.compat import worker_state
from celeriac.worker.execution import Execution
from celeriac.worker.mirror import RequestView

if TYPE_CHECKING:
    from celeriac.worker.service import Service

__all__ = ["Actions"]

#: Messages of each queue that ``inspect scheduled`` shows.
_MOST_DELAYED = 1000


class Actions:
    """The ``WorkerActions`` and the ``ExecutionsView`` of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    # -- WorkerActions -------------------------------------------------------------------------------------------

    def on_revoke(self, ids: Sequence[str], terminate: bool, signal: str | int | None) -> None:
        """Celery's ``revoke``: what has not started will not; what runs is stopped with ``terminate`` alone."""
        worker_state.revoked.update(ids)
        self._service.intake.note_revoked(ids, time.time())
        if terminate:
            self.on_terminate(ids, signal)
        else:
            self._service.held.halt(set(ids), TaskRevokedError("revoked"), only=_has_not_started)

    def on_merge_revoked(self, ids: Sequence[str]) -> None:
        worker_state.merge_revoked(ids)
        self._service.intake.note_revoked(ids, time.time())

    def on_terminate(self, ids: Sequence[str], signal: str | int | None) -> None:
        error = TaskRevokedError("terminated")
        error.signum = int(signals.signum(signal or "TERM"))
        self._service.held.halt(set(ids), error)

    def on_add_queue(self, name: str) -> None:
        self._service.fetcher.look_again()

    def on_cancel_queue(self, name: str) -> None:
        self._service.fetcher.look_again()

    def on_shutdown(self) -> None:
        self._service.shutdown.request()

    def on_cancel_active(self) -> None:
        self._service.shutdown.request_cold()

    def on_pool_grow(self, n: int) -> None:
        self._service.pool.grow(n)
        self._service.slots.resize(self._service.pool.limit)

    def on_pool_shrink(self, n: int) -> None:
        self._service.pool.shrink(n)
        self._service.slots.resize(self._service.pool.limit)

    def on_pool_resize(self, by: int) -> None:
        """Add slots, or take some away."""
        if by > 0:
            self.on_pool_grow(by)
        else:
            self.on_pool_shrink(-by)

    def on_rate_limit(self, task: str | None) -> None:
        tasks = self._service.app.tasks
        for changed in tasks.values() if task is None else [tasks[task]]:
            self._service.rates.read(changed)

    def on_time_limit(self, task: str) -> None:
        self._service.refresh(self._service.app.tasks[task])

    async def delayed(self) -> Sequence[Delayed]:
        """What waits for its time in the worker's queues, as much as anybody would read."""
        broker, queues = await self._broker(), self._service.queues()
        return [each for queue in queues for each in await broker.delayed(queue, _MOST_DELAYED)]

    async def waiting(self) -> int:
        """How many messages wait in the worker's queues."""
        broker, queues = await self._broker(), self._service.queues()
        return sum([await broker.size(queue) for queue in queues])

    async def _broker(self) -> Broker:
        return cast("Broker", (await self._service.app._connections.here()).broker)

    def describe(self, delayed: Sequence[Delayed]) -> Sequence[dict[str, Any]]:
        """As ``inspect scheduled`` shows it."""
        app = self._service.app
        return [
            {
                "eta": (execution.message.eta or datetime.fromtimestamp(each.due, UTC)).isoformat(),
                "priority": execution.delivery_info.get("priority") or 0,
                "request": RequestView(execution, app, _nothing).info(),
            }
            for each, execution in self._service.intake.peek(delayed)
        ]

    # -- ExecutionsView ------------------------------------------------------------------------------------------

    def active_count(self) -> int:
        return sum(execution.started for execution in self._service.held)

    def total_count(self) -> Mapping[str, int]:
        return self._service.reporter.totals

    def executions(self) -> Iterable[Execution]:
        return self._service.held


def _nothing(_task_id: str, _signal: Any) -> None:
    """Nothing: what has not been delivered cannot be terminated."""


def _has_not_started(execution: Execution) -> bool:
    return not execution.started
