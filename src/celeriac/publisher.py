"""Calls on their way to the broker: one batch per tick of the loop, a deadline, and Celery's publish signals."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from celery import signals

from celeriac.brokers.base import Broker, PartlyPublished
from celeriac.calls import Call
from celeriac.errors import BrokerUnavailable, CeleriacError, PublishTimeout, StoreError, StoreUnavailable
from celeriac.hooks import Hook, Published
from celeriac.late_records import LateRecords
from celeriac.protocol.codec import dumps
from celeriac.stores.base import Store
from celeriac.stores.records import TaskRecord, Transition

__all__ = ["Publisher", "end_of", "signal_after", "signal_before"]

logger = logging.getLogger("celeriac.publisher")

_Waiting = tuple[Call, asyncio.Future[None]]


class Publisher:
    """Publishes calls and starts their records, together.

    Belongs to the loop that its broker and its store belong to. ``deadline`` is in seconds. ``apart`` says that broker
    and store are two servers, of which one may fail alone.
    """

    def __init__(
        self,
        broker: Broker,
        store: Store,
        *,
        deadline: float,
        hooks: Sequence[Hook] = (),
        apart: bool = False,
    ) -> None:
        self._broker = broker
        self._store = store
        self._deadline = deadline
        self._hooks = hooks
        self._apart = apart
        self._waiting: dict[float, list[_Waiting]] = {}
        self._flushes: set[asyncio.Task[None]] = set()
        self._late = LateRecords(store)

    async def publish(self, call: Call, deadline: float | None = None) -> None:
        """Publish, and return when the broker has confirmed.

        Raises BrokerUnavailable, or PublishTimeout after ``deadline`` seconds, or where the connection ends before.
        """
        signal_before(call)
        await self._submit(call, self._deadline if deadline is None else deadline)
        signal_after(call)

    async def publish_many(self, calls: Sequence[Call], deadline: float | None = None) -> None:
        """Publish all in one step of the broker, all or none. Raises as ``publish`` does."""
        if not calls:
            return
        for call in calls:
            signal_before(call)
        try:
            await self._send(calls, self._deadline if deadline is None else deadline)
        except PartlyPublished as exc:
            raise exc.error from exc
        for call in calls:
            signal_after(call)

    async def replay(self, call: Call, record: TaskRecord) -> None:
        """Publish a task that has ended once more, and start its record over. Raises as ``publish`` does.

        ``record`` is how it ended, which it keeps if the broker does not take it.
        """
        signal_before(call)
        calls = [replace(call, record=replace(call.record, replay=True))]
        await self._send(calls, self._deadline, end_of(record))
        signal_after(call)

    async def close(self) -> None:
        """Wait for what is under way, and try a last time to record what the store has not taken."""
        await self.drain()
        await self._late.close()

    async def drain(self) -> None:
        """Wait for what is under way."""
        while self._waiting or self._flushes:
            # What was submitted in this tick is no flush yet.
            await (asyncio.wait(self._flushes) if self._flushes else asyncio.sleep(0))

    def _submit(self, call: Call, deadline: float) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        batch = self._waiting.get(deadline)
        if batch is None:
            batch = self._waiting[deadline] = []
            # Runs after everything that is ready in this tick, so that all its calls are in the batch.
            loop.call_soon(self._flush, deadline)
        batch.append((call, future))
        return future

    def _flush(self, deadline: float) -> None:
        batch = self._waiting.pop(deadline)
        task = asyncio.get_running_loop().create_task(self._send_batch(batch, deadline))
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)

    async def _send_batch(self, batch: list[_Waiting], deadline: float) -> None:
        error: Exception | None = None
        try:
            await self._send([call for call, _ in batch], deadline, surely=self._apart)
        except Exception as caught:  # noqa: BLE001 - it belongs to those who wait
            exc: Exception = caught
            if isinstance(caught, PartlyPublished):
                # Those are done, and must not be sent again with the others.
                for position in caught.published:
                    _done(batch[position][1])
                batch = [waiting for at, waiting in enumerate(batch) if at not in caught.published]
                exc = caught.error
            refused = not isinstance(exc, CeleriacError) or (
                isinstance(exc, BrokerUnavailable) and exc.permanent
            )
            if refused and len(batch) > 1:
                # One of them cannot be published, and the others should not pay for it.
                await asyncio.gather(*(self._send_batch([waiting], deadline) for waiting in batch))
                return
            error = exc
        for _, future in batch:
            if error is None:
                _done(future)
            elif not future.done():
                future.set_exception(error)

    async def _send(
        self,
        calls: Sequence[Call],
        deadline: float,
        former: Transition | None = None,
        *,
        surely: bool = False,
    ) -> None:
        started = time.perf_counter()
        until = asyncio.get_running_loop().time() + deadline
        publications = [call.publication for call in calls]
        # Both begin in the same tick: where broker and store are one server, this is one round trip. The order does
        # not matter, because the record's first transition only fills in what a quick worker has left open.
        # Where they are two, who has chosen an id may ask by it whether the broker has it.
        known = [call for call in calls if not call.fresh] if surely else []
        recorded = asyncio.ensure_future(
            self._record([call for call in calls if call.fresh] if known else calls)
        )
        published = asyncio.ensure_future(self._broker.publish(publications))
        if known:
            recorded = asyncio.ensure_future(self._record_behind(published, recorded, known))
        try:
            async with asyncio.timeout_at(until):
                await asyncio.shield(published)
                complaint = await asyncio.shield(recorded)
        except asyncio.CancelledError:
            _give_up(published, recorded)
            raise
        except TimeoutError:
            if not _is_confirmed(published):
                _give_up(published, recorded)
                raise PublishTimeout(
                    f"The broker did not confirm within {deadline:g} seconds; the task may or may not have been "
                    "enqueued."
                ) from None
            complaint = StoreUnavailable("it did not answer before the deadline")
        except PartlyPublished as exc:
            if _may_be_published(exc.error):
                raise PartlyPublished(
                    exc.published, await self._not_confirmed(exc.error, recorded, until)
                ) from exc
            lost = [call for at, call in enumerate(calls) if at not in exc.published]
            await self._take_back(lost, recorded, until, former)
            raise
        except Exception as exc:
            if _may_be_published(exc):
                raise await self._not_confirmed(exc, recorded, until) from exc
            await self._take_back(calls, recorded, until, former)
            raise
        if complaint is not None:
            # The tasks are the broker's and will run.
            logger.warning("The store did not record %d enqueued tasks: %s", len(calls), complaint)
            if former is None and isinstance(complaint, StoreUnavailable) and not complaint.permanent:
                self._late.add([*(call.record for call in calls), *_ahead(calls)])
        if self._hooks:
            self._observe(Published(tuple(call.task_id for call in calls), time.perf_counter() - started))

    async def _record(self, calls: Sequence[Call]) -> Exception | None:
        """Start the records. What keeps the store from it is no reason not to publish, and is returned."""
        if not calls:
            return None
        try:
            await self._store.transition([*(call.record for call in calls), *_ahead(calls)])
        except StoreError as exc:
            return exc
        except Exception as exc:
            logger.exception("%d tasks were not recorded", len(calls))
            return exc
        return None

    async def _record_behind(
        self,
        published: asyncio.Future[None],
        recorded: asyncio.Future[Exception | None],
        calls: Sequence[Call],
    ) -> Exception | None:
        """Record these calls too, once the broker has them. Returns what kept the store from recording, if anything.

        Whoever comes again with the same id takes a record for the sign that its task was enqueued.
        """
        await asyncio.wait([published])
        complaint = await recorded
        if complaint is None and _is_confirmed(published):
            complaint = await self._record(calls)
        return complaint

    async def _not_confirmed(
        self, exc: Exception, recorded: asyncio.Future[Exception | None], until: float
    ) -> PublishTimeout:
        """The error for tasks that the broker may have got. Their records stay, as they may yet run."""
        await asyncio.wait([recorded], timeout=max(0.0, until - asyncio.get_running_loop().time()))
        return PublishTimeout(
            f"The broker did not confirm: {str(exc).rstrip('.')}; the task may or may not have been enqueued."
        )

    async def _take_back(
        self,
        calls: Sequence[Call],
        recorded: asyncio.Future[Exception | None],
        until: float,
        former: Transition | None,
    ) -> None:
        """Undo the records of tasks that were not published, if there are any, by this time of the loop.

        They are deleted, or end as they did before if there is a ``former`` end.
        """
        # Only records that these calls have made: an id of the caller's own may have had one before.
        fresh = [call.task_id for call in calls if call.fresh]
        fresh += [step.task_id for call in calls for step in call.ahead if step.task_id not in call.known]
        try:
            async with asyncio.timeout_at(until):
                if await asyncio.shield(recorded) is not None:
                    return
                if former is None:
                    await self._store.forget(fresh)
                else:
                    await self._store.transition([former])
        except (StoreError, TimeoutError) as exc:
            logger.warning(
                "The store kept the records of %d tasks that were not enqueued: %s",
                len(calls),
                exc if str(exc) else "it did not answer before the deadline",
            )

    def _observe(self, event: Published) -> None:
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                logger.exception("The hook %r failed.", hook)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _give_up(published: asyncio.Future[Any], recorded: asyncio.Future[Any]) -> None:
    """Have what has not begun not happen, at once: a record without its message tells of a task that never runs.

    Perhaps it is the broker's by now, or will be: the record that was written stays, as the task may yet run.
    """
    if not published.done():
        recorded.cancel()
        published.cancel()
        # Nobody waits for how it ends.
        published.add_done_callback(lambda done: done.cancelled() or done.exception())


def _is_confirmed(published: asyncio.Future[Any]) -> bool:
    return published.done() and not published.cancelled() and published.exception() is None


def _ahead(calls: Sequence[Call]) -> list[Transition]:
    return [step for call in calls for step in call.ahead]


def _may_be_published(exc: Exception) -> bool:
    return isinstance(exc, BrokerUnavailable) and exc.unconfirmed


def end_of(record: TaskRecord) -> Transition:
    """The transition with which a record that was started over ends again as it did."""
    return Transition(
        task_id=record.id,
        state=record.state,
        at=time.time() if record.finished_at is None else record.finished_at.timestamp(),
        retries=record.retries,
        worker=record.worker,
        result=dumps(record.result),
        traceback=record.traceback,
        children=None if record.children is None else dumps(record.children),
    )


def signal_before(call: Call) -> None:
    """Send Celery's ``before_task_publish``; its receivers may still change headers and properties."""
    if signals.before_task_publish.receivers:
        message = call.publication.message
        message.headers_json = None  # the receivers may change the headers
        signals.before_task_publish.send(
            sender=call.name,
            body=call.body,
            exchange=call.publication.exchange,
            routing_key=call.publication.routing_key,
            declare=[],
            headers=message.headers,
            properties=message.properties,
            retry_policy={},
        )


def signal_after(call: Call) -> None:
    """Send Celery's ``after_task_publish``."""
    if signals.after_task_publish.receivers:
        _send_after(call)


def _send_after(call: Call) -> Any:
    return signals.after_task_publish.send(
        sender=call.name,
        body=call.body,
        headers=call.publication.message.headers,
        exchange=call.publication.exchange,
        routing_key=call.publication.routing_key,
    )
