"""Tells everybody how executions go: the record, Celery's signals and events, the task's own handlers, the log, hooks.

The order is Celery's (``celery.app.trace``): prerun, record, ``before_start``, the function; then handler, signal and
log for the ending, ``after_return``, postrun.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from celeriac.hooks import DeliveryReceived, ExecutionFinished, ExecutionStarted, Hook, HookEvent
from celeriac.protocol.settlement import Outcome
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution
from celeriac.worker.log import log_ending, log_received
from celeriac.worker.profile import Kind, TaskProfile

__all__ = ["Reporter"]

logger = get_logger(__name__)

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
        self.send_event: Callable[[], Callable[..., None] | None] = lambda: None
        self.totals: Counter[str] = Counter()

    def received(self, execution: Execution) -> None:
        """A delivery was taken."""
        log_received(execution)
        if signals.task_received.receivers:
            signals.task_received.send(sender=self._consumer, request=execution)
        if send := self.send_event():
            message = execution.message
            send(
                "task-received",
                uuid=execution.id,
                name=message.task,
                args=execution.argsrepr,
                kwargs=execution.kwargsrepr,
                root_id=message.root_id,
                parent_id=message.parent_id,
                retries=message.retries,
                eta=message.eta and message.eta.isoformat(),
                expires=message.expires and message.expires.isoformat(),
            )
        if self._hooks:
            delivery = execution.delivery
            self._observe(DeliveryReceived(execution.id, execution.name, delivery.queue, delivery.deliveries))

    async def starting(self, execution: Execution, profile: TaskProfile) -> None:
        """The function is next."""
        self.totals[execution.name] += 1
        message = execution.message
        if signals.task_prerun.receivers:
            signals.task_prerun.send(
                sender=profile.task,
                task_id=execution.id,
                task=profile.task,
                args=message.args,
                kwargs=message.kwargs,
            )
        if profile.track_started and execution.records.recording:
            execution.records.add(execution.transition(states.STARTED))
        if send := self.send_event():
            send("task-started", uuid=execution.id)
        if self._hooks:
            self._observe(ExecutionStarted(execution.id, execution.name, message.retries))
        if profile.before_start is not None:
            await _call(profile, profile.before_start, execution.id, message.args, message.kwargs)

    async def concluded(self, execution: Execution, profile: TaskProfile, ending: Ending) -> None:
        """The ending is recorded. A handler that raises changes nothing any more: it is logged."""
        message = execution.message
        arguments = (execution.id, message.args, message.kwargs)
        if ending.succeeded:
            if profile.on_success is not None:
                await self._handle(profile, profile.on_success, ending.value, *arguments)
            if signals.task_success.receivers:
                signals.task_success.send(sender=profile.task, result=ending.value, runtime=execution.runtime)
        elif (ending.failed or ending.state == states.RETRY) and ending.error is not None:
            await self._unsuccessful(execution, profile, ending, arguments)
        if ending.state in (states.SUCCESS, states.FAILURE) and profile.after_return is not None:
            value = ending.value if ending.succeeded else ending.error
            await self._handle(profile, profile.after_return, ending.state, value, *arguments, None)
        if signals.task_postrun.receivers:
            signals.task_postrun.send(
                sender=profile.task,
                task_id=execution.id,
                task=profile.task,
                args=message.args,
                kwargs=message.kwargs,
                retval=ending.value if ending.succeeded else ending.error,
                state=ending.state or states.IGNORED,
            )

    async def _unsuccessful(
        self, execution: Execution, profile: TaskProfile, ending: Ending, arguments: tuple[Any, ...]
    ) -> None:
        error = ending.error
        retrying = ending.state == states.RETRY
        handler = profile.on_retry if retrying else profile.on_failure
        signal = signals.task_retry if retrying else signals.task_failure
        if handler is None and not signal.receivers:
            return
        einfo = ExceptionInfo((type(error), error, error.__traceback__ if error else None))
        if handler is not None:
            reported = (getattr(error, "exc", None) or error) if retrying else error
            await self._handle(profile, handler, reported, *arguments, einfo)
        if retrying:
            signals.task_retry.send(sender=profile.task, request=execution.request, reason=error, einfo=einfo)
        else:
            signals.task_failure.send(
                sender=profile.task,
                task_id=execution.id,
                exception=error,
                args=arguments[1],
                kwargs=arguments[2],
                traceback=error.__traceback__ if error else None,
                einfo=einfo,
            )

    def ended(self, execution: Execution, ending: Ending) -> None:
        """The message is settled."""
        log_ending(execution, ending)
        event = _EVENTS.get(ending.outcome)
        if event is not None and (send := self.send_event()):
            send(event, uuid=execution.id, **_event_fields(execution, ending))
        if ending.outcome in (Outcome.REVOKED, Outcome.EXPIRED) and signals.task_revoked.receivers:
            signals.task_revoked.send(
                sender=execution.task,
                request=execution,
                terminated=execution.started,
                signum=None,
                expired=ending.outcome is Outcome.EXPIRED,
            )
        if self._hooks:
            state = ending.state or ending.outcome.name
            self._observe(ExecutionFinished(execution.id, execution.name, state, execution.runtime))

    async def _handle(self, profile: TaskProfile, handler: Callable[..., Any], *arguments: Any) -> None:
        try:
            await _call(profile, handler, *arguments)
        except (Exception, asyncio.CancelledError):
            logger.exception("Task %s: %s raised", profile.task.name, handler.__name__)

    def _observe(self, event: HookEvent) -> None:
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                logger.exception("The hook %r failed.", hook)


async def _call(profile: TaskProfile, handler: Callable[..., Any], *arguments: Any) -> None:
    """Call a handler where the task itself runs: what goes with a ``def`` task may block, so it gets a thread."""
    if profile.kind is Kind.FUNCTION and not inspect.iscoroutinefunction(handler):
        await asyncio.to_thread(handler, *arguments)
        return
    result = handler(*arguments)
    if inspect.isawaitable(result):
        await result


def _event_fields(execution: Execution, ending: Ending) -> dict[str, Any]:
    if ending.succeeded:
        return {"result": saferepr(ending.value, 1024), "runtime": execution.runtime}
    if ending.outcome is Outcome.REVOKED or ending.outcome is Outcome.EXPIRED:
        return {"terminated": execution.started, "signum": None, "expired": ending.outcome is Outcome.EXPIRED}
    if ending.outcome in (Outcome.REJECTED, Outcome.REJECTED_REQUEUE):
        return {"requeue": ending.outcome is Outcome.REJECTED_REQUEUE}
    return {"exception": saferepr(ending.error), "traceback": ending.traceback}
