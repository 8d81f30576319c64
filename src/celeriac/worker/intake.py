"""From deliveries to executions: decode, find the task, and ask the store once for the whole batch what it knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from celery import states
from celery.utils.log import get_logger
from kombu.serialization import prepare_accept_content

from celeriac.brokers.base import Delayed, Delivery, Settlement
from celeriac.errors import MalformedMessage, StoreUnavailable
from celeriac.protocol import envelope
from celeriac.protocol.message import Message, TaskMessage
from celeriac.protocol.settlement import Action
from celeriac.stores.base import Store
from celeriac.stores.records import Transition
from celeriac.worker.compat import maybe_list, worker_state
from celeriac.worker.ending import exception_json
from celeriac.worker.execution import Execution
from celeriac.worker.records import RecordWriter
from celeriac.worker.reporter import Reporter
from celeriac.worker.settler import Settler

__all__ = ["Admitted", "Intake"]

logger = get_logger(__name__)

T = TypeVar("T")

#: An execution, whether it was cancelled, and whether an earlier delivery of its message has ended it already.
Admitted = tuple[Execution, bool, bool]


class Intake:
    """Admits deliveries, and dead-letters what is no task message."""

    def __init__(
        self,
        app: Any,
        hostname: str,
        store: Store,
        *,
        records: RecordWriter,
        settler: Settler,
        reporter: Reporter,
    ) -> None:
        self._tasks = app.tasks
        self._accept = frozenset(prepare_accept_content(app.conf.accept_content))
        self._hostname = hostname
        self._store = store
        self._records = records
        self._settler = settler
        self._reporter = reporter
        self._revoked_at: dict[str, float] = {}

    def note_revoked(self, task_ids: Iterable[str], at: float) -> None:
        """Remote control has revoked these tasks at this time, in epoch seconds."""
        self._revoked_at.update(dict.fromkeys(task_ids, at))
        if len(self._revoked_at) > 2 * worker_state.REVOKES_MAX:
            # Celery's set forgets the oldest, and what it has forgotten needs no time.
            self._revoked_at = {
                task_id: at for task_id, at in self._revoked_at.items() if task_id in worker_state.revoked
            }

    async def revoked_meanwhile(self, execution: Execution) -> bool:
        """Whether an execution that had to wait was revoked since it was admitted."""
        revoked, _done = await self._marks([execution])
        return execution.id in revoked | await self._revoked_by_control([execution])

    async def admit(
        self, deliveries: Sequence[Delivery], hold: Callable[[Execution], None]
    ) -> Sequence[Admitted]:
        """The executions of a batch. What is malformed is dead-lettered here, and hurts nobody else.

        ``hold`` is called with each before the store is asked, so that what is cancelled meanwhile is not missed.
        """
        executions = []
        for delivery in deliveries:
            try:
                executions.append(self._decode(delivery))
            except MalformedMessage as exc:
                await self._refuse(delivery, exc)
        if not executions:
            return []
        for execution in executions:
            hold(execution)
        revoked, done = await self._marks(executions)
        revoked |= await self._revoked_by_control(executions)
        announcing = self._reporter.announces_received
        for execution in executions:
            self._reporter.received(execution)
            if announcing and execution.id not in revoked:
                await self._reporter.announce_received(execution)
        return [(execution, execution.id in revoked, execution.id in done) for execution in executions]

    def peek(self, delayed: Sequence[Delayed]) -> list[tuple[Delayed, Execution]]:
        """Messages that wait for their time as the executions they will be; but for what is malformed."""
        found = []
        for each in delayed:
            with contextlib.suppress(MalformedMessage):
                found.append((each, self._decode(Delivery("", each.queue, each.envelope, 0))))
        return found

    async def _revoked_by_control(self, executions: Sequence[Execution]) -> set[str]:
        """Which this worker was told to revoke, and that nobody has enqueued anew since.

        A record that was started over has no cancel mark any more, and was enqueued after the command.
        """
        stamped = {execution.id for execution in executions if _revoked_by_stamp(execution)}
        told = {execution.id for execution in executions if execution.id in worker_state.revoked}
        if not told:
            return stamped
        records = await _asked(lambda: self._store.get(list(told)))
        return stamped | {
            task_id
            for task_id in told
            if (record := records.get(task_id)) is None
            or record.enqueued_at is None
            or record.enqueued_at.timestamp() < self._revoked_at.get(task_id, float("inf"))
        }

    def _decode(self, delivery: Delivery) -> Execution:
        carried = delivery.envelope
        message = carried if isinstance(carried, Message) else envelope.decode(carried)
        task_message = TaskMessage.from_message(message, self._accept)
        task = self._tasks.get(task_message.task)
        return Execution(delivery, task_message, task, self._hostname, self._records)

    async def _refuse(self, delivery: Delivery, error: MalformedMessage) -> None:
        logger.error("Message dead-lettered from queue %r: %s", delivery.queue, error)
        if error.task_id:
            await self._records.write(
                Transition(
                    task_id=error.task_id,
                    state=states.FAILURE,
                    at=self._records.now(),
                    name=error.task,
                    queue=delivery.queue,
                    worker=self._hostname,
                    result=exception_json(error),
                )
            )
        await self._settler.settle(Settlement(delivery.tag, Action.DEAD_LETTER, reason=str(error)))
        await self._reporter.refused(delivery, error)

    async def _marks(self, executions: Sequence[Execution]) -> tuple[set[str], set[str]]:
        """Which were cancelled, and which have ended before their message could be settled."""
        ids = [execution.id for execution in executions]
        again = {execution.id: execution for execution in executions if execution.redelivered}
        cancelled = set(await _asked(lambda: self._store.cancelled(ids)))
        wanted = [*again, *cancelled]
        records = await _asked(lambda: self._store.get(wanted)) if wanted else {}
        for execution in executions:
            # Somebody has deleted its record, and does not want it back.
            execution.forgotten = execution.id in cancelled and execution.id not in records
        done = {
            task_id
            for task_id, record in records.items()
            if task_id in again
            and record.ready
            and record.state != states.REVOKED
            and record.retries >= again[task_id].message.retries
            and not _is_wanted_again(again[task_id])
        }
        return cancelled, done


async def _asked(question: Callable[[], Awaitable[T]]) -> T:
    """The store's answer, whenever it comes.

    Without its marks a cancelled task would run; without the store a task's result would be lost anyway.
    """
    while True:
        try:
            return await question()
        except StoreUnavailable as exc:
            logger.error("Cannot ask the store for marks, trying again in 1 s: %s", exc)
        await asyncio.sleep(1)


def _revoked_by_stamp(execution: Execution) -> bool:
    """Whether ``revoke_by_stamped_headers`` has named one of the task's stamps."""
    revoked = worker_state.revoked_stamps
    return bool(revoked) and any(
        value in (maybe_list(revoked.get(stamp)) or ())
        for stamp in execution.message.stamped_headers
        for value in maybe_list(execution.message.stamps.get(stamp)) or ()
    )


def _is_wanted_again(execution: Execution) -> bool:
    """Whether the result of a task that has ended may be missing in its chord, and is not in its record."""
    return bool(execution.message.chord) and execution.ignores_result
