"""Tells everybody how executions go: the record, Celery's signals and events, the task's own handlers, the log, hooks.

What belongs to the task's life is called where its function is: see :mod:`celeriac.worker.lifecycle`. The rest is told
by the worker itself, on the loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from celery import signals, states
from celery.exceptions import Retry
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from celeriac.brokers.base import Delivery
from celeriac.hooks import DeliveryReceived, ExecutionFinished, ExecutionStarted, Hook, HookEvent
from celeriac.protocol.settlement import Outcome
from celeriac.worker.announce import UserCall, announce, announce_here
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution
from celeriac.worker.lifecycle import Lifecycle
from celeriac.worker.log import log_ending, log_received
from celeriac.worker.profile import TaskProfile
from celeriac.worker.received import ReceivedRequest
from celeriac.worker.refusal import raw_message

__all__ = ["Perform", "Reporter"]

logger = get_logger(__name__)

#: Makes calls where the task's function is called: on the loop, or in its thread.
Perform = Callable[[Sequence[UserCall]], Awaitable[None]]

_EVENTS = {
    Outcome.SUCCEEDED: "task-succeeded",
    Outcome.FAILED: "task-failed",
    Outcome.TIMED_OUT: "task-failed",
    Outcome.EXHAUSTED: "task-failed",
    Outcome.RETRIED: "task-retried",
    Outcome.REVOKED: "task-revoked",
    Outcome.EXPIRED: "task-revoked",
    Outcome.REJECTED: "task-rejected",
    Outcome.REJECTED_REQUEUE: "task-rejected",
}


class Reporter:
    """Reports one worker's executions. ``send_event`` publishes a Celery event; ``None`` while nobody listens."""

    def __init__(self, consumer: Any, hooks: Sequence[Hook] = ()) -> None:
        self._consumer = consumer
        self._hooks = hooks
        self._lifecycle = Lifecycle(consumer.app.loader)
        self.send_event: Callable[[], Callable[..., None] | None] = lambda: None
        self.totals: Counter[str] = Counter()

    def is_followed(self, profile: TaskProfile) -> bool:
        """Whether anything besides the function is to be called where the function is. If not, nobody performs."""
        return self._lifecycle.is_followed(profile)

    def received(self, execution: Execution) -> None:
        """A delivery was taken."""
        log_received(execution)
        if self._hooks:
            delivery = execution.delivery
            self._observe(DeliveryReceived(execution.id, execution.name, delivery.queue, delivery.deliveries))

    @property
    def announces_received(self) -> bool:
        """Whether anybody wants to hear of ``announce_received``."""
        return bool(signals.task_received.receivers) or self.send_event() is not None

    async def announce_received(self, execution: Execution) -> None:
        """Celery's signal and event, for a task that will run: of others Celery tells the log alone."""
        message = execution.message
        if execution.task is None or execution.has_expired:
            return
        if signals.task_received.receivers:
            request = ReceivedRequest(execution, self._consumer.app)
            await announce(signals.task_received, self._consumer, request=request)
        self._send(
            execution,
            "task-received",
            name=message.task,
            args=execution.argsrepr,
            kwargs=execution.kwargsrepr,
            root_id=message.root_id,
            parent_id=message.parent_id,
            retries=message.retries,
            eta=message.eta and message.eta.isoformat(),
            expires=message.expires and message.expires.isoformat(),
        )

    async def refused(self, delivery: Delivery, error: BaseException) -> None:
        """A message was no task's: Celery's ``task_rejected``."""
        if signals.task_rejected.receivers:
            await announce(signals.task_rejected, self._consumer, message=raw_message(delivery), exc=error)

    async def starting(self, execution: Execution, profile: TaskProfile, perform: Perform | None) -> None:
        """The function is next."""
        self.totals[execution.name] += 1
        if perform is not None:
            await perform(self._lifecycle.preparing(execution, profile))
        if profile.track_started and execution.records.recording:
            execution.records.add(execution.transition(states.STARTED))
        if execution.replies is not None and profile.track_started and not execution.ignores_result:
            execution.replies.announce_start(execution)
        if self.send_event() is not None:
            self._send(execution, "task-started")
        if self._hooks:
            self._observe(ExecutionStarted(execution.id, execution.name, execution.message.retries))
        if perform is not None:
            await perform(self._lifecycle.starting(execution, profile))

    async def concluded(
        self, execution: Execution, profile: TaskProfile, ending: Ending, perform: Perform | None
    ) -> None:
        """The ending is recorded."""
        ending.runtime = execution.runtime
        if perform is not None:
            await perform(self._lifecycle.closing(execution, profile, ending))

    def ended(self, execution: Execution, ending: Ending) -> None:
        """The message is settled."""
        log_ending(execution, ending)
        if self.send_event() is not None:
            self._send_end(execution, ending)
        if ending.outcome in (Outcome.REVOKED, Outcome.EXPIRED) and signals.task_revoked.receivers:
            announce_here(
                signals.task_revoked,
                execution.task,
                request=execution.request,
                terminated=execution.started,
                signum=_signum(execution, ending),
                expired=ending.outcome is Outcome.EXPIRED,
            )
        if execution.task is None and execution.delivery.deliveries <= 1:
            self._unknown(execution, ending)
        if self._hooks:
            state = ending.state or ending.outcome.name
            self._observe(ExecutionFinished(execution.id, execution.name, state, ending.runtime))

    def _unknown(self, execution: Execution, ending: Ending) -> None:
        """Celery's ``task_unknown``: once for each message, however often it is offered again."""
        if ending.outcome in (Outcome.UNKNOWN_TASK, Outcome.EXHAUSTED) and signals.task_unknown.receivers:
            announce_here(
                signals.task_unknown,
                self._consumer,
                message=raw_message(execution.delivery),
                exc=ending.error,
                name=execution.name,
                id=execution.id,
            )

    def _send_end(self, execution: Execution, ending: Ending) -> None:
        event = _EVENTS.get(ending.outcome)
        if ending.outcome is Outcome.REJECTED:
            # It will never run again, so Celery tells of a failure as well.
            self._send(execution, "task-failed", **_error_fields(ending))
        if event is not None:
            self._send(execution, event, **_event_fields(execution, ending))

    def _send(self, execution: Execution, event: str, **fields: Any) -> None:
        send = self.send_event()
        if send is not None and (execution.task is None or execution.task.send_events):
            send(event, uuid=execution.id, **fields)

    def _observe(self, event: HookEvent) -> None:
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                logger.exception("The hook %r failed.", hook)


def _event_fields(execution: Execution, ending: Ending) -> dict[str, Any]:
    if ending.succeeded:
        shown = saferepr(ending.value, getattr(execution.task, "resultrepr_maxsize", 1024))
        return {"result": shown, "runtime": ending.runtime}
    if ending.outcome is Outcome.REVOKED or ending.outcome is Outcome.EXPIRED:
        return {
            "terminated": execution.started,
            "signum": _signum(execution, ending),
            "expired": ending.outcome is Outcome.EXPIRED,
        }
    if ending.outcome in (Outcome.REJECTED, Outcome.REJECTED_REQUEUE):
        return {"requeue": ending.outcome is Outcome.REJECTED_REQUEUE}
    return _error_fields(ending)


def _error_fields(ending: Ending) -> dict[str, Any]:
    # Of a retry, what it was asked for with.
    error = ending.error.exc if isinstance(ending.error, Retry) else ending.error
    return {"exception": saferepr(error), "traceback": ending.traceback}


def _signum(execution: Execution, ending: Ending) -> int | None:
    """The signal that the task was terminated with, by remote control."""
    return getattr(ending.error, "signum", None) if execution.started else None
