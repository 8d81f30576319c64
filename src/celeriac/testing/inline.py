"""Publishing that returns when the task has run: through message, queue and worker, as everything does."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from celeriac.calls import Call
from celeriac.compat import current_execution
from celeriac.connection import Connection, Connections
from celeriac.publisher import Publisher
from celeriac.stores.records import TaskRecord
from celeriac.timing import Now

__all__ = ["StagedConnections"]

#: Waits until the tasks of these ids have run; all of them, if there are none.
Run = Callable[[Collection[str]], Awaitable[None]]


class StagedConnections(Connections):
    """An app's connections in a test. With ``run``, what is published natively has run when publishing returns."""

    def __init__(self, app: Any, now: Now, run: Run | None = None) -> None:
        super().__init__(app)
        self.now = now
        self._run = run

    async def _open(self) -> Connection:
        connection = await super()._open()
        if self._run is None:
            return connection
        deadline = self._app.settings.publish_deadline
        publisher = _InlinePublisher(self._run, connection, deadline)
        return dataclasses.replace(connection, publisher=publisher)


class _InlinePublisher(Publisher):
    def __init__(self, run: Run, connection: Connection, deadline: float) -> None:
        super().__init__(connection.broker, connection.store, deadline=deadline)
        self._run = run

    async def publish(self, call: Call, deadline: float | None = None) -> None:
        await super().publish(call, deadline)
        await self._wait([call])

    async def publish_many(self, calls: Sequence[Call], deadline: float | None = None) -> None:
        await super().publish_many(calls, deadline)
        await self._wait(calls)

    async def replay(self, call: Call, record: TaskRecord) -> None:
        await super().replay(call, record)
        await self._wait([call])

    async def _wait(self, calls: Sequence[Call]) -> None:
        # Inside a task not for everything: the task itself is yet to end.
        await self._run([call.task_id for call in calls] if current_execution() is not None else ())
