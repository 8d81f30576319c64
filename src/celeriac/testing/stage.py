"""What a test's tasks run on: queues, records and a clock in memory, and a worker on each event loop that asks."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Literal
from uuid import uuid4

from celeriac.brokers.memory_queues import MemoryQueues
from celeriac.brokers.memory_topology import MemoryTopology
from celeriac.errors import StillRunning
from celeriac.protocol.codec import loads
from celeriac.stores.memory_records import MemoryRecords
from celeriac.stores.records import Transition, describe_error
from celeriac.testing.blocking import inline_send_task
from celeriac.testing.clock import Clock
from celeriac.testing.compat import elsewhere
from celeriac.testing.inline import StagedConnections
from celeriac.testing.queues import ObservedQueues, ObservedRecords
from celeriac.testing.schedule import Schedule
from celeriac.testing.settings import settings_at
from celeriac.webapp import in_worker
from celeriac.worker.embedded import run_embedded
from celeriac.worker.service import Service

__all__ = ["Mode", "Stage"]

#: When tasks run: as soon as they are due, before ``enqueue`` returns, or when the test says so.
Mode = Literal["worker", "inline", "held"]

#: Slots of a worker: tasks that wait for others, inline, must not run out of them.
_SLOTS = 1000


class Stage:
    """One app's tasks in memory, for one test.

    ``timeout`` is how many seconds tasks may take. ``raise_errors``: whether whoever waits for tasks is told of their
    failures. ``schedule``: whether the entries of ``beat_schedule`` are sent at their times.
    """

    def __init__(
        self,
        celery: Any,
        app: Any,
        *,
        mode: Mode,
        raise_errors: bool,
        timeout: float,
        schedule: bool,
        clock: Clock,
    ) -> None:
        self.celery = celery
        self.mode: str = mode
        #: Of the queues and the records, in this process.
        self.name = f"test-{uuid4().hex}"
        self.clock = clock
        self.timeout = timeout
        self.on_failure: Callable[[str], None] | None = None
        self._app = app
        self._raise_errors = raise_errors
        self._failed: list[str] = []
        self._open = mode != "held"
        self._has_schedule = schedule
        self._schedule: Schedule | None = None
        self.workers: list[tuple[asyncio.AbstractEventLoop, Service]] = []
        self.queues = ObservedQueues(clock.now)
        self.records = ObservedRecords(clock.now)
        self.records.on_failure = self._note

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Take the app from its servers, and give it back. Imports the app's modules: not for the event loop."""
        name = self.name
        self.queues.share(name)
        self.records.share(name)
        url = f"memory://{name}"
        settings = settings_at(url)
        self.queues.retries_at_once = self.mode == "inline"
        connections = StagedConnections(self.celery, self)
        try:
            with (
                elsewhere(self.celery, settings, connections, self.clock.now),
                self._published_inline(),
                self._beside_its_lifespan(),
            ):
                if self._has_schedule:
                    self._schedule = Schedule(self.celery, self.clock)
                yield
        finally:
            for shared in (MemoryQueues, MemoryTopology, MemoryRecords):
                shared.discard(name)

    @contextmanager
    def _published_inline(self) -> Iterator[None]:
        """Have Celery's own ways to publish wait, where they can."""
        if self.mode != "inline":
            yield
            return
        self.celery.send_task = inline_send_task(self)
        try:
            yield
        finally:
            del self.celery.send_task

    @contextmanager
    def _beside_its_lifespan(self) -> Iterator[None]:
        """Have a worker where the ASGI app's lifespan runs: it starts after it, and ends before it."""
        if self._app is None:
            yield
            return
        router, former = self._app.router, self.celery.fastapi_app
        inner = router.lifespan_context
        self.celery.fastapi_app = self._app

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with AsyncExitStack() as stack:
                starting = in_worker.set(True)  # so that it starts no worker of its own
                try:
                    state = await stack.enter_async_context(inner(app))
                finally:
                    in_worker.reset(starting)
                # An app's lifespan need not be celery's for tasks to find what it has set up.
                stack.enter_context(self.celery.web_apps.running(app, state))
                await stack.enter_async_context(self.worker_here())
                yield state

        router.lifespan_context = lifespan
        try:
            yield
        finally:
            router.lifespan_context = inner
            self.celery.fastapi_app = former

    @asynccontextmanager
    async def lifespan_here(self) -> AsyncIterator[None]:
        """The ASGI app's lifespan on this loop, and a worker beside it."""
        async with self._app.router.lifespan_context(self._app):
            yield

    @asynccontextmanager
    async def worker_here(self) -> AsyncIterator[Service]:
        """A worker on this loop; the one that is there, if there is one."""
        loop = asyncio.get_running_loop()
        for at, service in self.workers:
            if at is loop:
                yield service
                return
        async with (
            self.celery,
            run_embedded(self.celery, concurrency=_SLOTS, queues=self._queues_to_work_on) as service,
        ):
            entry = (loop, service)
            self.workers.append(entry)
            try:
                yield service
            finally:
                self.workers.remove(entry)

    def _queues_to_work_on(self) -> list[str]:
        return list({**dict.fromkeys(self.celery.amqp.queues), **self.queues.names}) if self._open else []

    async def idle(self) -> None:
        """Wait until nothing that is due is left to do; where tasks are held, until none runs."""
        unfinished = self.queues.unfinished if self._open else self.queues.running
        # The test's loop need not be that of its fixtures, whose worker sleeps with it.
        async with self.worker_here():
            await self._until(lambda: [draft.task_id for draft in unfinished()])
            await self._raise_failures()

    async def run_held(self) -> None:
        """Let tasks run until nothing that is due is left to do."""
        if self._open:
            await self.idle()
            return
        self._open = True
        try:
            await self.idle()
        finally:
            self._open = False

    async def wait_for(self, ids: Collection[str]) -> None:
        """Wait until these tasks have run, or, without ids, until nothing that is due is left to do."""
        if not ids:
            await self.idle()
            return
        async with self.worker_here():
            await self._until(
                lambda: [draft.task_id for draft in self.queues.unfinished() if draft.task_id in ids],
                runners=False,
            )

    async def advance(self, seconds: float) -> None:
        """Move the clock, from one task that falls due to the next; each has ended before time goes on."""
        target = self.clock.now() + seconds
        async with self.worker_here():
            if self._open:
                await self.idle()
            while (due := self._next_due()) <= target:
                self.clock.set(due)
                self.queues.wake()
                if self._schedule is not None:
                    await self._schedule.send_due()
                if self._open:
                    await self.idle()
            self.clock.set(target)
            self.queues.wake()

    def _next_due(self) -> float:
        """When the next thing happens by itself: a task falls due, or the schedule sends one."""
        delayed = self.queues.delayed_tasks() if self._open else None
        due = delayed[0][0] if delayed else math.inf
        return due if self._schedule is None else min(due, self._schedule.next_due())

    async def _until(self, busy: Callable[[], list[str]], *, runners: bool = True) -> None:
        """Wait until nobody is busy. Raises StillRunning."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # a loop that has closed has nobody who waits
                loop.call_soon_threadsafe(changed.set)

        stop = self.queues.listen(tell)
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    changed.clear()
                    if busy():
                        self._poke()
                        await changed.wait()
                    elif runners and (working := self._runners(loop)):
                        await asyncio.wait(working)
                    else:
                        return
        except TimeoutError:
            raise StillRunning(f"The tasks were not done {self.complaint(busy())}") from None
        finally:
            stop()

    def _poke(self) -> None:
        # A queue may be new, or may be worked on only now.
        for loop, service in self.workers:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(service.fetcher.look_again)

    def _runners(self, loop: asyncio.AbstractEventLoop) -> set[asyncio.Task[None]]:
        return {runner for at, service in self.workers if at is loop for runner in service.runners}

    def complaint(self, ids: Collection[str]) -> str:
        """Why a test has waited for these tasks in vain, as the end of a sentence."""
        running = {each.id: each for _, service in self.workers for each in service.held}
        parts = [
            f"{each.name}[{each.id}] still runs, after {each.runtime:.1f} s" for each in running.values()
        ]
        waiting = [
            f"{draft.task}[{draft.task_id}] waits in the queue {draft.queue!r}"
            for draft in self.queues.unfinished()
            if draft.task_id in ids and draft.task_id not in running
        ]
        delayed = [
            f"{draft.task}[{draft.task_id}] is due in {due - self.clock.now():g} s by the test's clock, which stands "
            "still until clock.advance(…) moves it"
            for due, draft in self.queues.delayed_tasks()
            if draft.task_id in ids
        ]
        what = "; ".join([*parts, *waiting, *delayed]) or "a worker has not finished"
        return f"within {self.timeout:g} s: {what}. If tasks need longer, give in_memory(…, timeout=…) more seconds."

    def _note(self, step: Transition) -> None:
        self._failed.append(step.task_id)
        if self.on_failure is not None:
            result = None if step.result is None else loads(step.result, "The result")
            what = step.traceback or describe_error(result) or "Its result is ignored; the log has the error."
            self.on_failure(f"{step.name}[{step.task_id}]\n{what}")

    async def _raise_failures(self) -> None:
        if self._raise_errors and self._failed:
            failed, self._failed = self._failed, []
            record = self.records.fetch(failed[:1])
            handle = self.celery.handle(failed[0])
            try:
                await handle.result(0.0)
            except Exception as exc:
                if record and record[0].traceback:
                    exc.add_note(f"In the task {record[0].name}:\n{record[0].traceback}")
                raise
