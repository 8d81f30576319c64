"""Which receivers and handlers an execution calls when it starts and when it ends, in the order of Celery's tracer.

``celery.app.trace.build_tracer``: prerun, ``before_start``, the function; then the handler and the signal of the
ending, ``after_return``, postrun. Handlers are those of
https://docs.celeryq.dev/en/stable/userguide/tasks.html#handlers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.loaders.base import BaseLoader
from celery.utils.log import get_logger

from celeriac.protocol.settlement import Outcome
from celeriac.worker.announce import UserCall, announce_here, receivers_of
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution
from celeriac.worker.log import shown_name
from celeriac.worker.profile import TaskProfile

__all__ = ["Lifecycle", "internal_error"]

logger = get_logger("celery.app.trace")

#: What ``task_postrun`` says of endings that leave the record as it was, or say something else in it.
_STATES = {
    Outcome.IGNORED: states.IGNORED,
    Outcome.REJECTED: states.REJECTED,
    Outcome.REJECTED_REQUEUE: states.REJECTED,
    Outcome.HANDED_BACK: states.RETRY,
    Outcome.WORKER_LOST: states.RETRY,
}

_SIGNALS = (
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
    signals.task_failure,
    signals.task_retry,
)


class Lifecycle:
    """The calls around the functions of one app's tasks."""

    def __init__(self, loader: Any) -> None:
        self._on_task_init = _overridden(loader, "on_task_init")
        self._on_process_cleanup = _overridden(loader, "on_process_cleanup")

    def is_followed(self, profile: TaskProfile) -> bool:
        """Whether anything is to be called besides the task's function."""
        for signal in _SIGNALS:
            if signal.receivers:
                return True
        return profile.handled or self._on_task_init is not None or self._on_process_cleanup is not None

    def preparing(self, execution: Execution, profile: TaskProfile) -> list[UserCall]:
        """What comes before the record says STARTED."""
        message, task = execution.message, profile.task
        calls = receivers_of(
            signals.task_prerun,
            task,
            task_id=execution.id,
            task=task,
            args=message.args,
            kwargs=message.kwargs,
        )
        if self._on_task_init is not None:
            calls.append(UserCall(self._on_task_init, "the loader's hook", (execution.id, task)))
        return calls

    def starting(self, execution: Execution, profile: TaskProfile) -> list[UserCall]:
        """What comes between that and the function. What it raises, the task has raised."""
        if profile.before_start is None:
            return []
        message = execution.message
        arguments = (execution.id, message.args, message.kwargs)
        return [UserCall(profile.before_start, "a handler", arguments)]

    def closing(self, execution: Execution, profile: TaskProfile, ending: Ending) -> list[UserCall]:
        """What comes when the result is stored. An exception changes nothing any more: it is logged."""
        if ending.succeeded:
            calls = self._successful(execution, profile, ending)
        elif ending.outcome is Outcome.RETRIED:
            calls = self._retried(execution, profile, ending)
        elif ending.state == states.FAILURE or ending.outcome is Outcome.TIMED_OUT:
            calls = self._failed(execution, profile, ending)
        else:
            calls = []
        postrun = self._postrun(execution, profile, ending)
        # The worker itself fails a rejected task, when its function's process is done with it.
        return [*postrun, *calls] if ending.outcome is Outcome.REJECTED else [*calls, *postrun]

    def _successful(self, execution: Execution, profile: TaskProfile, ending: Ending) -> list[UserCall]:
        calls = self._handler(execution, profile.on_success, ending.value)
        calls += receivers_of(signals.task_success, profile.task, result=ending.value, runtime=ending.runtime)
        return calls + self._after_return(execution, profile, states.SUCCESS, ending.value)

    def _failed(self, execution: Execution, profile: TaskProfile, ending: Ending) -> list[UserCall]:
        handler = None if ending.outcome is Outcome.REJECTED else profile.on_failure
        after = self._after_return(execution, profile, states.FAILURE, ending.error)
        if handler is None and not signals.task_failure.receivers:
            return [] if ending.outcome is Outcome.REJECTED else after
        error, message, einfo = ending.error, execution.message, _einfo(ending)
        handlers = self._handler(execution, handler, error, einfo=einfo)
        rejected = ending.outcome is Outcome.REJECTED
        receivers = receivers_of(
            signals.task_failure,
            profile.task,
            task_id=execution.id,
            exception=error,
            args=message.args,
            kwargs=message.kwargs,
            traceback=einfo.traceback if rejected else error and error.__traceback__,
            einfo=einfo,
        )
        if rejected:
            return receivers
        if ending.outcome is Outcome.TIMED_OUT:  # in the order of ``Request.on_timeout``
            return [*handlers, *after, *receivers]
        return [*handlers, *receivers, *after]

    def _retried(self, execution: Execution, profile: TaskProfile, ending: Ending) -> list[UserCall]:
        if profile.on_retry is None and not signals.task_retry.receivers:
            return []
        einfo = _einfo(ending)
        cause = getattr(ending.error, "exc", None)
        calls = self._handler(execution, profile.on_retry, cause, einfo=einfo)
        return calls + receivers_of(
            signals.task_retry, profile.task, request=execution.request, reason=ending.error, einfo=einfo
        )

    def _postrun(self, execution: Execution, profile: TaskProfile, ending: Ending) -> list[UserCall]:
        calls = receivers_of(
            signals.task_postrun,
            profile.task,
            task_id=execution.id,
            task=profile.task,
            args=execution.message.args,
            kwargs=execution.message.kwargs,
            retval=ending.value if ending.succeeded else ending.error,
            state=_STATES.get(ending.outcome) or ending.state,
        )
        if self._on_process_cleanup is not None:
            calls.append(
                UserCall(
                    self._on_process_cleanup,
                    "the loader's hook",
                    on_error=lambda exc: logger.error("Process cleanup failed: %r", exc, exc_info=exc),
                )
            )
        return calls

    def _handler(
        self,
        execution: Execution,
        handler: Callable[..., Any] | None,
        value: Any,
        *,
        einfo: ExceptionInfo | None = None,
    ) -> list[UserCall]:
        """``on_success``, ``on_failure``, ``on_retry``."""
        if handler is None:
            return []
        message = execution.message
        arguments = [value, execution.id, message.args, message.kwargs]
        if einfo is None:
            return [UserCall(handler, "a handler", arguments, on_error=_logs(execution, handler))]
        on_error = _reports(execution, handler)
        return [UserCall(handler, "a handler", [*arguments, einfo], on_error=on_error)]

    def _after_return(
        self, execution: Execution, profile: TaskProfile, state: str, value: Any
    ) -> list[UserCall]:
        handler = profile.after_return
        if handler is None:
            return []
        message = execution.message
        arguments = (state, value, execution.id, message.args, message.kwargs, None)
        return [UserCall(handler, "a handler", arguments, on_error=_logs(execution, handler))]


def internal_error(execution: Execution, error: BaseException) -> None:
    """Send ``task_internal_error``: something went wrong around a task, and not in it."""
    if not signals.task_internal_error.receivers:
        return
    message = execution.message
    announce_here(
        signals.task_internal_error,
        execution.task,
        task_id=execution.id,
        args=message.args,
        kwargs=message.kwargs,
        request=dict(vars(execution.request)),
        exception=error,
        traceback=error.__traceback__,
        einfo=ExceptionInfo((type(error), error, error.__traceback__)),
    )


def _einfo(ending: Ending) -> ExceptionInfo:
    error = ending.error
    return ExceptionInfo((type(error), error, error.__traceback__ if error is not None else None))


def _logs(execution: Execution, handler: Callable[..., Any]) -> Callable[[BaseException], None]:
    def log(error: BaseException) -> None:
        logger.error(
            "Task %s[%s] %s handler raised: %r",
            shown_name(execution),
            execution.id,
            handler.__name__,
            error,
            exc_info=error,
        )

    return log


def _reports(execution: Execution, handler: Callable[..., Any]) -> Callable[[BaseException], None]:
    log = _logs(execution, handler)

    def report(error: BaseException) -> None:
        log(error)
        internal_error(execution, error)

    return report


def _overridden(loader: Any, name: str) -> Callable[..., Any] | None:
    """A loader's hook, if its class has one that does something."""
    if getattr(type(loader), name, None) in (None, getattr(BaseLoader, name)):
        return None
    hook: Callable[..., Any] = getattr(loader, name)
    return hook
