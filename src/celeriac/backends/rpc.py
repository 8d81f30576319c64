"""``result_backend = "rpc://"``: results travel to whoever has called, as Celery's do, and records are kept elsewhere.

The place of the records is the setting ``celeriac_records_url``. What a reply queue cannot tell, because another thread
has called or nobody at a queue of its own, is looked up there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from celery import states
from celery.app.backends import by_url
from celery.backends import rpc as stock
from kombu.exceptions import EncodeError
from kombu.serialization import dumps
from kombu.utils.encoding import str_to_bytes
from kombu.utils.objects import cached_property

from celeriac.backends.planned import PlannedBackend
from celeriac.backends.recording import RecordingBackend
from celeriac.brokers.base import Publication
from celeriac.compat import current_execution
from celeriac.config import records_url
from celeriac.errors import StoreUnavailable
from celeriac.planning import active_plan
from celeriac.protocol.codec import dumps_record, loads
from celeriac.protocol.message import Message
from celeriac.stores.records import Transition

__all__ = ["RPCBackend"]

logger = logging.getLogger("celeriac.backends")


class ResultConsumer(stock.ResultConsumer):  # type: ignore[misc]
    """Celery's, which also finds the results that nobody sends to it."""

    def drain_events(self, timeout: float | None = None) -> Any:
        try:
            return super().drain_events(timeout=timeout)
        except TimeoutError:
            self._look_into_records()
            raise

    def _look_into_records(self) -> None:
        waited_for = {task_id for mapping in self._pending_results for task_id in list(mapping)}
        for task_id in waited_for:
            meta = self.backend.recorded_meta(task_id)
            if meta["status"] in states.READY_STATES:
                self.on_state_change(meta, None)


class _SendingBackend(RecordingBackend, stock.RPCBackend):  # type: ignore[misc]
    """Sends each result to who has called, and has it recorded."""

    ResultConsumer = ResultConsumer

    @cached_property
    def records(self) -> Any:
        """The backend over the records."""
        backend, url = by_url(records_url(self.app.conf), self.app.loader)
        return backend(app=self.app, url=url)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        """Record a task's state, and send it. First the record, for whoever hears of it and looks there."""
        self.records.store_result(task_id, result, state, traceback=traceback, request=request, **options)
        return super().store_result(task_id, result, state, traceback=traceback, request=request, **options)


class RPCBackend(PlannedBackend, _SendingBackend):
    """Celery's RPC backend, beside a backend that keeps records."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Have a queue for the answer. Not for what a task of our worker calls: it may not wait for that."""
        if current_execution() is None:
            super().on_task_call(producer, task_id)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        """Celery's; in a plan, the transition that it means, and the answer."""
        plan = active_plan()
        if plan is not None and plan.app is self.app and request is not None:
            answer = self.answer_of(task_id, result, state, traceback, request)
            plan.replies += [answer] if answer else []
        return super().store_result(task_id, result, state, traceback=traceback, request=request, **options)

    def apply_chord(self, header_result_args: Any, body: Any, **options: Any) -> None:
        """Refused, as by Celery: nobody would count the parts that stock workers run. Raises NotImplementedError."""
        self.ensure_chords_allowed()

    def answer_of(
        self, task_id: str, result: Any, state: str, traceback: str | None, request: Any
    ) -> Publication | None:
        """The message that Celery's ``RPCBackend.store_result`` would send, if anybody waits for one."""
        queue, correlation_id = self.destination_for(task_id, request)
        if not queue:
            return None
        meta = self._to_result(task_id, state, result, traceback, request)
        try:
            content_type, content_encoding, body = dumps(meta, serializer=self.serializer)
        except EncodeError:
            # Arguments that came by another serializer.
            shown = {name: loads(dumps_record(meta[name])) for name in ("args", "kwargs") if name in meta}
            content_type, content_encoding, body = dumps({**meta, **shown}, serializer=self.serializer)
        properties = {"correlation_id": correlation_id, "delivery_mode": self.delivery_mode}
        message = Message({}, properties, str_to_bytes(body), content_type, content_encoding)
        return Publication(message, queue, task_id)

    # -- the records -----------------------------------------------------------------------------------------------

    def record_published(self, transitions: Sequence[Transition]) -> None:
        self.records.record_published(transitions)

    def request_cancel(self, task_ids: Sequence[str], *, running: bool = True) -> Collection[str]:
        marked: Collection[str] = self.records.request_cancel(task_ids, running=running)
        return marked

    def is_cancelled(self, task_id: str) -> bool:
        return bool(self.records.is_cancelled(task_id))

    def _forget(self, task_id: str) -> None:
        self.records.forget(task_id)

    def cleanup(self) -> None:
        """Delete records that have expired."""
        self.records.cleanup()

    def recorded_meta(self, task_id: str) -> dict[str, Any]:
        """What the record says of a task; nothing, while the records cannot be reached."""
        try:
            meta: dict[str, Any] = self.records.get_task_meta(task_id, cache=False)
        except StoreUnavailable as exc:
            logger.warning("The record of task %s cannot be read: %s", task_id, exc)
            return {"task_id": task_id, "status": states.PENDING, "result": None}
        return meta

    def get_task_meta(self, task_id: str, backlog_limit: int = 1000) -> dict[str, Any]:
        """What the reply queue of this thread says of a task, else what its record says."""
        meta: dict[str, Any] = super().get_task_meta(task_id, backlog_limit)
        if meta["status"] in states.READY_STATES:
            return meta
        recorded = self.recorded_meta(task_id)
        known = meta["status"] != states.PENDING and recorded["status"] not in states.READY_STATES
        return meta if known else recorded
