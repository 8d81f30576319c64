"""How an attempt ended: what the function returned or raised, as a state and an outcome."""

from __future__ import annotations

import traceback as traceback_module
from dataclasses import dataclass, fields
from typing import Any

from celery import states
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError, TimeLimitExceeded
from celery.utils.saferepr import saferepr
from pydantic_core import to_jsonable_python

from celeriac.calls import Call
from celeriac.errors import CeleriacError, ContentDisallowed, MalformedMessage
from celeriac.protocol.codec import dumps
from celeriac.protocol.settlement import Outcome

__all__ = ["Ending", "HandedBack", "LeaseLost", "ending_of", "exception_json"]


class HandedBack(CeleriacError):
    """The worker shuts down; the task goes back to its queue."""


class LeaseLost(CeleriacError):
    """The lease had ended; another worker has the task."""


@dataclass(slots=True)
class Ending:
    """The end of one attempt. ``state`` is ``None`` when the record is to stay as it is.

    ``hint`` is for who reads the log: what can be done.
    """

    outcome: Outcome
    state: str | None
    value: Any = None
    error: BaseException | None = None
    reason: str = ""
    hint: str = ""
    result: str | None = None
    traceback: str | None = None
    retries: tuple[Call, ...] = ()
    runtime: float = 0.0

    def become(self, other: Ending) -> None:
        """It ended otherwise: what had to be done on the way out has failed."""
        for field in fields(self):
            setattr(self, field.name, getattr(other, field.name))

    @property
    def succeeded(self) -> bool:
        return self.outcome is Outcome.SUCCEEDED

    @property
    def failed(self) -> bool:
        """Whether callbacks for failure are due."""
        return bool(self.state == states.FAILURE) and self.outcome is not Outcome.REJECTED


def ending_of(error: BaseException) -> Ending:
    """The ending of an attempt that raised.

    Celery's predicates come first: ``Retry``, ``Ignore`` and ``Reject`` are no failures
    (https://docs.celeryq.dev/en/stable/userguide/tasks.html#semipredicates).
    """
    if isinstance(error, Retry):
        return _with_error(Outcome.RETRIED, states.RETRY, error, error.exc or error)
    if isinstance(error, Ignore):
        return Ending(Outcome.IGNORED, None, error=error)
    if isinstance(error, Reject) and error.requeue:
        return Ending(Outcome.REJECTED_REQUEUE, None, error=error, reason=f"rejected: {_text(error.reason)}")
    if isinstance(error, Reject):
        # Celery leaves the state as it was; here the message becomes a dead letter, and its record says that it ended.
        ending = _with_error(Outcome.REJECTED, states.FAILURE, error, error)
        ending.reason = f"rejected by the task: {_text(error.reason)}"
        return ending
    if isinstance(error, HandedBack):
        return Ending(Outcome.HANDED_BACK, None, error=error)
    if isinstance(error, LeaseLost):
        return Ending(Outcome.WORKER_LOST, None, error=error)
    if isinstance(error, TaskRevokedError):
        return _with_error(Outcome.REVOKED, states.REVOKED, error, error)
    if isinstance(error, (MalformedMessage, ContentDisallowed)):
        return _with_error(Outcome.MALFORMED, states.FAILURE, error, error)
    outcome = Outcome.TIMED_OUT if isinstance(error, TimeLimitExceeded) else Outcome.FAILED
    return _with_error(outcome, states.FAILURE, error, error)


def _with_error(outcome: Outcome, state: str, error: BaseException, recorded: BaseException) -> Ending:
    _strip(error)
    _strip(recorded)
    return Ending(
        outcome,
        state,
        error=error,
        reason=f"{type(recorded).__name__}: {_text(recorded)}",
        result=exception_json(recorded),
        traceback=_traceback_of(recorded) if state != states.REVOKED else None,
    )


def exception_json(error: BaseException) -> str:
    """An exception as Celery's JSON results have it (``Backend.prepare_exception``)."""
    if isinstance(error, TaskRevokedError) and not error.args:
        error = TaskRevokedError("revoked")
    return dumps(
        {
            "exc_type": type(error).__qualname__,
            "exc_message": [_jsonable(argument) for argument in _arguments_of(error)],
            "exc_module": type(error).__module__,
        }
    )


def _arguments_of(error: BaseException) -> tuple[Any, ...]:
    """What an exception was made with, as far as it says so.

    Made by keywords alone it has no arguments, and its record would say nothing. FastAPI's HTTPException often is.
    """
    if error.args:
        return error.args
    status, text = getattr(error, "status_code", None), _text(error)
    if isinstance(status, int):
        return (status, getattr(error, "detail", text))
    return (text,) if text else ()


def _jsonable(value: Any) -> Any:
    """A value for a record: whatever an exception was given, telling of it must not fail."""
    try:
        jsonable = to_jsonable_python(value)
        dumps(jsonable)
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return str(saferepr(value))
    return jsonable


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return str(saferepr(value))


def _strip(error: BaseException) -> None:
    """Leave the worker's own frames out of a traceback: what matters to who reads it begins below them."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("celeriac.worker."):
        trace = trace.tb_next
    if trace is not None:
        error.__traceback__ = trace


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback_module.format_exception(type(error), error, error.__traceback__))
    except Exception:  # noqa: BLE001 - the exception itself may refuse to be shown
        return "".join(traceback_module.format_tb(error.__traceback__))
