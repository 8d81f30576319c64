"""An app's connections in a test: nobody waits for ever, and publishing may return when the task has run.

That goes through message, queue and worker, as everything does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from celeriac.brokers.base import Broker
from celeriac.calls import Call
from celeriac.compat import current_execution
from celeriac.connection import Connections
from celeriac.errors import StillRunning
from celeriac.publisher import Publisher
from celeriac.stores.base import Store, Watch
from celeriac.stores.memory import MemoryStore
from celeriac.stores.records import TaskRecord
from celeriac.testing.clock import Clock

__all__ = ["StagedConnections"]


class Waits(Protocol):
    """What runs the tasks of a test."""

    clock: Clock
    mode: str
    name: str
    timeout: float

    async def wait_for(self, ids: Collection[str]) -> None:
        """Wait until the tasks of these ids have run; all of them, if there are none."""

    def complaint(self, ids: Collection[str]) -> str:
        """Why they have not."""


class StagedConnections(Connections):
    """An app's connections in a test."""

    def __init__(self, app: Any, stage: Waits) -> None:
        super().__init__(app)
        self.now = stage.clock.now
        self._stage = stage

    async def leave(self) -> None:
        # A worker that comes for one question must not take the connection with it that the test has opened.
        if connection := self.current():
            await connection.publisher.drain()

    def make_store(self) -> Store:
        return _ImpatientStore(self._stage, expires=self._app.settings.result_expires)

    def make_publisher(self, broker: Broker, store: Store) -> Publisher:
        if self._stage.mode != "inline":
            return super().make_publisher(broker, store)
        return _InlinePublisher(self._stage, broker, store, self._app.settings.publish_deadline)


class _ImpatientStore(MemoryStore):
    """A store in which nobody waits for ever that a task ends: the time that it is due may never come."""

    def __init__(self, stage: Waits, *, expires: float | None) -> None:
        super().__init__(stage.name, expires=expires)
        self._stage = stage

    @asynccontextmanager
    async def watch(self, task_id: str, *, until_ready: bool = False) -> AsyncIterator[Watch]:
        async with super().watch(task_id, until_ready=until_ready) as watch:
            yield _ImpatientWatch(watch, task_id, self._stage) if until_ready else watch


class _ImpatientWatch(Watch):
    def __init__(self, watch: Watch, task_id: str, stage: Waits) -> None:
        self._watch, self._task_id, self._stage = watch, task_id, stage

    async def changed(self) -> None:
        try:
            async with asyncio.timeout(self._stage.timeout):
                await self._watch.changed()
        except TimeoutError:
            why = self._stage.complaint([self._task_id])
            raise StillRunning(f"The task {self._task_id} did not end {why}", self._task_id) from None


class _InlinePublisher(Publisher):
    def __init__(self, stage: Waits, broker: Broker, store: Store, deadline: float) -> None:
        super().__init__(broker, store, deadline=deadline)
        self._stage = stage

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
        await self._stage.wait_for(
            [call.task_id for call in calls] if current_execution() is not None else ()
        )
