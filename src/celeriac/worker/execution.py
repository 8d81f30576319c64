"""One attempt at one task, from its delivery to its settlement."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from celery.canvas import Signature
from pydantic_core import to_jsonable_python

from celeriac.brokers.base import Delivery
from celeriac.compat import RunsTask, TaskRequest, trailed_children
from celeriac.planning import Plan
from celeriac.propagation import owner_in, request_id_in
from celeriac.protocol.codec import dumps, dumps_record, loads
from celeriac.protocol.message import TaskMessage
from celeriac.stores.records import EventDraft, Transition
from celeriac.worker.records import RecordWriter
from celeriac.worker.replies import Replies

__all__ = ["Execution"]


class Execution(RunsTask):
    """What the steps of the executor pass on, and what a running task talks to.

    ``task`` is ``None`` for a task that this worker does not know. ``stop`` is the exception that says why the task
    must not go on; whoever sets it also interrupts the function.
    """

    __slots__ = (
        "__weakref__",
        "_carrying",
        "_plan",
        "_request",
        "abandoned",
        "acknowledged",
        "concluding",
        "delivery",
        "ended",
        "forgotten",
        "held_retries",
        "hostname",
        "interrupt",
        "message",
        "on_abandoned",
        "planned",
        "records",
        "replies",
        "runner",
        "started_at",
        "stop",
        "successors",
        "task",
        "time_start",
        "unrecorded",
    )

    def __init__(
        self, delivery: Delivery, message: TaskMessage, task: Any, hostname: str, records: RecordWriter
    ) -> None:
        self.delivery = delivery
        self.message = message
        self.task = task
        self.records = records
        self.hostname = hostname
        self._request: TaskRequest | None = None
        self.runner: asyncio.Task[None] | None = None
        self.interrupt: Any = None
        self.stop: BaseException | None = None
        self.acknowledged = False
        self.concluding = False
        self.ended = False
        self.abandoned = False
        self.on_abandoned: Callable[[Execution], None] | None = None
        self.started_at: float | None = None
        self.time_start: float | None = None
        self.held_retries: list[Signature] = []
        self.successors: Any = None
        #: Who answers its caller, if that waits for an answer at a queue of its own.
        self.replies: Replies | None = None
        self._plan: Plan | None = None
        self._carrying: asyncio.Task[None] | None = None
        self.planned: set[asyncio.Task[None]] | None = None
        self.unrecorded = _is_kombus(message)
        self.forgotten = False

    @property
    def request(self) -> TaskRequest:
        if self._request is None:
            self._request = TaskRequest(request_values(self))
        return self._request

    @property
    def children(self) -> str | None:
        """The tasks that this one has called, as Celery's result meta has them."""
        return None if self._request is None else trailed_children(self._request)

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def name(self) -> str:
        """The task's name; in logs and events ``shadow`` wins over it."""
        return self.message.task

    @property
    def owner(self) -> str | None:
        """Whose task it is, as its message says."""
        return owner_in(self.message.headers)

    @property
    def request_id(self) -> str | None:
        """The request that set it off, as its message says."""
        return request_id_in(self.message.headers)

    @property
    def redelivered(self) -> bool:
        """Whether somebody has had the message before. Stock workers, who count nothing, mark what they put back."""
        info = self.message.properties.get("delivery_info") or {}
        return self.delivery.deliveries > 1 or bool(info.get("redelivered"))

    @property
    def has_expired(self) -> bool:
        """Whether it is too late for the task to start."""
        expires = self.message.expires
        return expires is not None and expires.timestamp() <= self.records.now()

    @property
    def ignores_result(self) -> bool:
        """Whether the result is not to be kept; the call wins over the task."""
        asked = self.message.ignore_result
        return bool(self.task.ignore_result if asked is None and self.task is not None else asked)

    @property
    def stores_errors(self) -> bool:
        """Whether an error is kept although the result is not."""
        return self.task is not None and bool(self.task.store_errors_even_if_ignored)

    # -- what remote control shows -------------------------------------------------------------------------------

    @property
    def type(self) -> str:
        return self.message.task

    @property
    def args(self) -> Any:
        return self.message.args

    @property
    def kwargs(self) -> Any:
        return self.message.kwargs

    @property
    def argsrepr(self) -> str:
        return self.message.argsrepr or repr(self.message.args)

    @property
    def kwargsrepr(self) -> str:
        return self.message.kwargsrepr or repr(self.message.kwargs)

    @property
    def worker_pid(self) -> int:
        return os.getpid()

    @property
    def stamps(self) -> Mapping[str, Any]:
        return self.message.stamps or {}

    @property
    def started(self) -> bool:
        return self.started_at is not None

    @property
    def delivery_info(self) -> Mapping[str, Any]:
        return self.request.delivery_info or {}

    # -- its course ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The function is about to be called."""
        self.started_at = time.monotonic()
        self.time_start = self.records.now()

    @property
    def runtime(self) -> float:
        """Seconds since the function was called."""
        return 0.0 if self.started_at is None else time.monotonic() - self.started_at

    def halt(self, reason: BaseException) -> None:
        """Stop the function, or keep it from starting. The first reason counts; one that comes too late does not."""
        if self.stop is None and not self.ended:
            self.stop = reason
            if self.interrupt is not None:
                self.interrupt(reason)

    def abandon(self) -> None:
        """The function cannot be stopped: whoever set ``on_abandoned`` concludes without it."""
        if self.on_abandoned is not None:
            self.abandoned = True
            self.on_abandoned(self)

    # -- what a running task may do, on the loop or in a thread --------------------------------------------------

    def progress(self, current: float, total: float | None, note: str) -> None:
        """See ``Task.progress``."""
        self._emit("progress", {"current": current, "total": total, "note": note})

    def emit(self, value: Any) -> None:
        """See ``Task.emit``."""
        self._emit("value", value)

    def _emit(self, kind: Any, value: Any) -> None:
        data = dumps(to_jsonable_python(value))
        self.records.add(EventDraft(self.id, kind, data, self.records.now()))

    def set_state(self, state: str, meta: Any) -> None:
        """See ``Task.update_state``."""
        result = None if meta is None else dumps(to_jsonable_python(meta))
        self.records.add(self.transition(state, result=result))
        if self.replies is not None:
            self.replies.announce(self, state, None if result is None else loads(result))

    def hold_retry(self, signature: Signature) -> None:
        """``self.retry()`` was called; the executor publishes it when the function has ended.

        Not for an attempt that was stopped: its end is decided, and a thread may notice long after it.
        """
        if self.stop is None:
            self.held_retries.append(signature)

    def ambient_plan(self) -> Plan | None:
        """The plan that the task's own code adds to, where it runs on the loop; a thread may wait for itself.

        It is carried out when the coroutine gives way, and before the task ends.
        """
        loop = asyncio._get_running_loop()
        if loop is None or self.successors is None or not self.records.is_on(loop):
            return None
        if self._plan is None:
            self._plan = self.successors.plan()
            if self.planned is None:
                self.planned = set()
            # In order: what the code does next may need what it did before.
            self._carrying = loop.create_task(self._carry_out(self._carrying))
            self.planned.add(self._carrying)
        return self._plan

    async def _carry_out(self, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
        finally:
            # Not sooner: what is called meanwhile goes with it, so that a task that publishes all the time has one
            # plan under way, and one that waits.
            plan, self._plan = self._plan, None
        await self.successors.carry_out(plan, apart=True)
        if self.planned is not None:
            # Only failures are kept for the end, which may be days away.
            self.planned.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def finish_plans(self) -> None:
        """Wait until what the task's code has published and stored is with the servers. Raises what they refused."""
        # What errbacks call in a plan is in the second round. There is no third: what the task has left running may
        # publish for ever.
        for _ in range(2):
            planned, self.planned = self.planned or (), None
            for done in await asyncio.gather(*planned, return_exceptions=True):
                if isinstance(done, BaseException):
                    raise done

    def transition(self, state: str, **values: Any) -> Transition:
        """A step of this task's record, made now by this worker."""
        if self.unrecorded:
            self.unrecorded = False
            values |= _call_of(self.message)
        return Transition(
            task_id=self.id,
            state=state,
            at=self.records.now(),
            name=self.name,
            queue=self.delivery.queue,
            retries=self.message.retries,
            worker=self.hostname,
            **values,
        )


def _is_kombus(message: TaskMessage) -> bool:
    """Whether kombu has published it, perhaps for a client that keeps no records: its delivery tags are UUIDs."""
    tag = message.properties.get("delivery_tag")
    return isinstance(tag, str) and tag[8:9] == "-"


def _call_of(message: TaskMessage) -> dict[str, Any]:
    """What the first record of a call says beside its task: whoever publishes natively has written it."""
    return {
        "args": dumps_record(message.args),
        "kwargs": dumps_record(message.kwargs),
        "owner": owner_in(message.headers),
        "root_id": message.root_id,
        "parent_id": message.parent_id,
        "group_id": message.group_id,
        "eta": message.eta and message.eta.timestamp(),
        "expires": message.expires and message.expires.timestamp(),
    }


def request_values(execution: Execution) -> dict[str, Any]:
    """What Celery's worker puts into ``task.request`` (``celery.worker.request.Request``, and the tracer)."""
    message, properties = execution.message, execution.message.properties
    info = properties.get("delivery_info") or {}
    return {
        **message.headers,
        **message.embed,
        "args": message.args,
        "kwargs": message.kwargs,
        "time_limit": message.time_limit,
        "soft_time_limit": message.soft_time_limit,
        "properties": properties,
        "reply_to": properties.get("reply_to"),
        "correlation_id": properties.get("correlation_id"),
        "hostname": execution.hostname,
        "delivery_info": {
            "exchange": info.get("exchange"),
            "routing_key": info.get("routing_key") or execution.delivery.queue,
            "priority": properties.get("priority"),
            "redelivered": execution.redelivered,
        },
        "called_directly": False,
        "is_eager": False,
        "message_headers": message.headers,
    }
