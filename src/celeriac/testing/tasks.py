"""What a test has in its hands: an app's tasks in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from typing import Any, get_args

from kombu.serialization import prepare_accept_content

from celeriac.protocol import envelope
from celeriac.protocol.message import TaskMessage
from celeriac.testing.blocking import run_blocking
from celeriac.testing.calls import EnqueuedCall, Expected
from celeriac.testing.clock import Clock
from celeriac.testing.clocks import AsyncClock, SyncClock
from celeriac.testing.queues import Seen
from celeriac.testing.stage import Mode, Stage

__all__ = ["InMemory", "InMemoryTasks", "SyncInMemoryTasks", "in_memory"]


class _Tasks:
    """What both kinds of tests have."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    def enqueued(self) -> list[EnqueuedCall]:
        """Every call that was enqueued, in order: by ``enqueue``, ``.delay()`` or a canvas, by the app or by a task.

        Attempts after the first are not among them.
        """
        stage = self._stage
        accept = frozenset(prepare_accept_content(stage.celery.conf.accept_content))
        messages = [(seen, _read(seen, accept)) for seen in list(stage.queues.seen)]
        owners = stage.records.owners([message.id for _, message in messages])
        return [
            _call(seen, message, owners.get(message.id)) for seen, message in messages if not message.retries
        ]

    def assert_enqueued(self, task: Any, *args: Any, **kwargs: Any) -> EnqueuedCall:
        """Assert that a task was enqueued, and return the first call that fits.

        Args:
            task: A task, its name, or a task with options: ``send_email.using(queue="mail", countdown=60)``.
            args: With ``kwargs``, the arguments, as they would be given to ``enqueue``. None at all mean any;
                ``unittest.mock.ANY`` stands for any value.

        Raises:
            AssertionError: It was not. The message shows what was enqueued.
            TypeError: The option says nothing about a call.
        """
        expected = Expected(task, args, kwargs)
        calls = self.enqueued
        found = next((call for call in calls if expected.fits(call)), None)
        if found is None:
            raise AssertionError(f"{expected} was not enqueued. {_listed(calls)}")
        return found

    def assert_not_enqueued(self, task: Any, *args: Any, **kwargs: Any) -> None:
        """Assert that no such call was enqueued. Takes and raises what :meth:`assert_enqueued` does."""
        expected = Expected(task, args, kwargs)
        calls = self.enqueued
        if any(expected.fits(call) for call in calls):
            raise AssertionError(f"{expected} was enqueued. {_listed(calls)}")


class InMemoryTasks(_Tasks):
    """An app's tasks in memory, with a worker on the event loop of the test."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.clock = AsyncClock(stage)

    async def idle(self) -> None:
        """Wait until everything that is due has been done; where tasks are held, until none runs.

        Raises StillRunning when that takes longer than ``timeout``, and with ``raise_errors`` the first failure.
        """
        await self._stage.idle()

    async def run_until_idle(self) -> None:
        """Run everything that is due, also where tasks are held. Raises as :meth:`idle` does."""
        await self._stage.run_held()


class SyncInMemoryTasks(_Tasks):
    """The same for a test without an event loop: the worker is on the loop of starlette's ``TestClient``.

    Without a client whose lifespan has been entered (``with TestClient(app) as client:``), tasks run when ``idle`` or
    ``run_until_idle`` is called.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.clock = SyncClock(stage)

    def idle(self) -> None:
        """Wait until everything that is due has been done. Raises as :meth:`InMemoryTasks.idle` does."""
        run_blocking(self._stage, self._stage.idle)

    def run_until_idle(self) -> None:
        """Run everything that is due, also where tasks are held. Raises as :meth:`idle` does."""
        run_blocking(self._stage, self._stage.run_held)


class InMemory:
    """What :func:`in_memory` returns: a context, for ``async with`` and for ``with``."""

    def __init__(self, stage: Stage, *, lifespan: bool) -> None:
        self._stage = stage
        self._lifespan = lifespan
        self._sync = ExitStack()
        self._async = AsyncExitStack()

    def report_failures(self, tell: Callable[[str], None]) -> None:
        """Have the traceback of each task that fails told."""
        self._stage.on_failure = tell

    async def __aenter__(self) -> InMemoryTasks:
        await asyncio.to_thread(self._sync.enter_context, self._stage.set_up())
        try:
            stage = self._stage
            await self._async.enter_async_context(
                stage.lifespan_here() if self._lifespan else stage.worker_here()
            )
        except BaseException:
            self._sync.close()
            raise
        return InMemoryTasks(self._stage)

    async def __aexit__(self, *_exc: object) -> None:
        try:
            await self._async.aclose()
        finally:
            await asyncio.to_thread(self._sync.close)

    def __enter__(self) -> SyncInMemoryTasks:
        self._sync.enter_context(self._stage.set_up())
        return SyncInMemoryTasks(self._stage)

    def __exit__(self, *_exc: object) -> None:
        self._sync.close()


def in_memory(
    celery: Any,
    *,
    app: Any = None,
    mode: Mode = "worker",
    raise_errors: bool = False,
    timeout: float = 5.0,
    schedule: bool = False,
    lifespan: bool = False,
    at: datetime | None = None,
) -> InMemory:
    """Run an app's tasks in memory, for one test: no server, no file; afterwards the app is as it was.

    ``async with`` gives :class:`InMemoryTasks`, ``with`` gives :class:`SyncInMemoryTasks`.

    Args:
        celery: The app. Its broker and its result backend are replaced.
        app: The FastAPI app: where its lifespan is entered (``TestClient``), a worker runs, and tasks have its
            dependencies and overrides.
        mode: ``"worker"`` runs tasks in the background as soon as they are due. ``"inline"`` has ``enqueue`` return
            when the task has run, retries and all. ``"held"`` runs nothing before ``run_until_idle``.
        raise_errors: Whether ``idle`` and its kin, and inline ``enqueue``, raise what a task has raised.
        timeout: Seconds that tasks may take until ``idle`` and its kin, and whoever waits for a result, raise
            StillRunning.
        schedule: Whether the entries of ``beat_schedule`` are sent when the clock is moved past their times.
        lifespan: Whether to enter the lifespan of ``app`` on the test's loop: httpx's ``ASGITransport`` does not.
        at: The time of the test, which stands still; now, if not given.

    Raises:
        ValueError: There is no such mode, or a lifespan was asked for and no ``app`` given.
    """
    if lifespan and app is None:
        raise ValueError(
            "in_memory(lifespan=True) needs the app whose lifespan it is: in_memory(celery, app=app)."
        )
    if mode not in get_args(Mode):
        raise ValueError(f"There is no mode {mode!r}: it is one of {', '.join(get_args(Mode))}.")
    stage = Stage(
        celery,
        app,
        mode=mode,
        raise_errors=raise_errors,
        timeout=timeout,
        schedule=schedule,
        clock=Clock(at),
    )
    return InMemory(stage, lifespan=lifespan)


def _read(seen: Seen, accept: frozenset[str]) -> TaskMessage:
    return TaskMessage.from_message(envelope.decode(seen.draft.envelope), accept)


def _call(seen: Seen, message: TaskMessage, owner: str | None) -> EnqueuedCall:
    return EnqueuedCall(
        id=message.id,
        name=message.task,
        args=message.args,
        kwargs=message.kwargs,
        queue=seen.draft.queue,
        at=datetime.fromtimestamp(seen.at, UTC),
        eta=message.eta,
        expires=message.expires,
        priority=seen.draft.priority,
        owner=owner,
        parent_id=message.headers.get("parent_id"),
        headers=message.headers,
    )


def _listed(calls: list[EnqueuedCall]) -> str:
    if not calls:
        return "Nothing was enqueued."
    return "\n".join(["These were enqueued:", *(f"  {call}" for call in calls)])
