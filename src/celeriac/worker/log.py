"""One line when a task is received, one when it has ended.

In Celery's words, under the names of Celery's loggers and with the mapping that Celery adds as ``record.data``, so that
what reads, filters or formats its logs does so with ours. Its ``LOG_…`` formats may be replaced, as in
https://docs.celeryq.dev/en/stable/userguide/extending.html#customizing-task-handling-logs.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.app import trace as celery_trace
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from kombu.utils.encoding import safe_repr

from celeriac.protocol.settlement import Outcome
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution

__all__ = ["log_ending", "log_received", "log_soft_limit", "shown_name"]

_received = get_logger("celery.worker.strategy")
_traced = get_logger("celery.app.trace")
_requested = get_logger("celery.worker.request")

#: What is no success, and no failure of the function: the logger, the level, and the words, or the name of Celery's.
_WORDS: dict[Outcome, tuple[logging.Logger, int, str]] = {
    Outcome.RETRIED: (_traced, logging.INFO, "LOG_RETRY"),
    Outcome.IGNORED: (_traced, logging.INFO, "LOG_IGNORED"),
    Outcome.REJECTED: (_traced, logging.WARNING, "LOG_REJECTED"),
    Outcome.REJECTED_REQUEUE: (
        _traced,
        logging.WARNING,
        "Task %(name)s[%(id)s] %(exc)s: it is back in its queue",
    ),
    Outcome.REVOKED: (_requested, logging.INFO, "Discarding revoked task: %(name)s[%(id)s]"),
    Outcome.EXPIRED: (_requested, logging.INFO, "Discarding revoked task: %(name)s[%(id)s] (expired)"),
    Outcome.HANDED_BACK: (
        _requested,
        logging.INFO,
        "Task %(name)s[%(id)s] handed back: the worker shuts down",
    ),
    Outcome.UNKNOWN_TASK: (
        _requested,
        logging.ERROR,
        "Task %(name)s[%(id)s] parked, %(hint)s",
    ),
    Outcome.EXHAUSTED: (_requested, logging.ERROR, "Task %(name)s[%(id)s] dead-lettered: %(reason)s"),
    Outcome.TIMED_OUT: (
        _requested,
        logging.ERROR,
        "Hard time limit (%(limit)ss) exceeded for %(name)s[%(id)s]",
    ),
    Outcome.WORKER_LOST: (
        _requested,
        logging.WARNING,
        "Task %(name)s[%(id)s] left to another worker: its lease had ended",
    ),
}


def shown_name(execution: Execution) -> str:
    """The name that logs give a task: ``shadow`` wins over its own."""
    return execution.message.shadow or execution.name


def log_received(execution: Execution) -> None:
    """``Task name[id] received``."""
    if _received.isEnabledFor(logging.INFO):
        context = {
            "id": execution.id,
            "name": shown_name(execution),
            "args": execution.argsrepr,
            "kwargs": execution.kwargsrepr,
            "eta": execution.message.eta,
            "request_id": execution.request_id,
        }
        extra = {
            "data": context,
            "request_id": execution.request_id,
        }  # nothing is the execution's context yet
        _received.info(celery_trace.LOG_RECEIVED, context, extra=extra)


def log_soft_limit(execution: Execution, limit: float) -> None:
    """The task is told to stop, and may yet end as it likes."""
    _requested.warning(
        "Soft time limit (%ss) exceeded for %s[%s]", limit, shown_name(execution), execution.id
    )


def log_ending(execution: Execution, ending: Ending) -> None:
    """``Task name[id] succeeded in 0.1s: value``, or what else became of it."""
    if ending.succeeded:
        if execution.started and _traced.isEnabledFor(logging.INFO):
            _log_success(execution, ending)
    elif ending.outcome is Outcome.FAILED and ending.error is not None:
        _log_failure(execution, ending)
    elif ending.outcome is not Outcome.UNKNOWN_TASK or execution.delivery.deliveries <= 1:
        # What is parked is said when it came first.
        _log_other(execution, ending)


def _log_success(execution: Execution, ending: Ending) -> None:
    context = {
        "id": execution.id,
        "name": shown_name(execution),
        "return_value": saferepr(ending.value, getattr(execution.task, "resultrepr_maxsize", 1024)),
        "runtime": ending.runtime,
        "args": execution.argsrepr,
        "kwargs": execution.kwargsrepr,
        "request_id": execution.request_id,
    }
    _traced.info(celery_trace.LOG_SUCCESS, context, extra={"data": context})


def _log_failure(execution: Execution, ending: Ending) -> None:
    """What a task ``throws`` is expected: no traceback, and no error (``celery.app.trace.get_log_policy``)."""
    throws = getattr(execution.task, "throws", ()) or ()
    expected = bool(throws) and isinstance(ending.error, throws)
    context = _context(execution, ending)
    context["description"] = "raised expected" if expected else "raised unexpected"
    _traced.log(
        logging.INFO if expected else logging.ERROR,
        celery_trace.LOG_FAILURE,
        context,
        exc_info=None if expected else ending.error,
        extra={"data": context},
    )


def _log_other(execution: Execution, ending: Ending) -> None:
    logger, level, words = _WORDS.get(ending.outcome, (_requested, logging.INFO, ending.outcome.name))
    if not logger.isEnabledFor(level):
        return
    context = _context(execution, ending)
    if ending.outcome is Outcome.RETRIED:
        context["exc"] = str(ending.error)
    elif ending.outcome is Outcome.TIMED_OUT:
        context["limit"] = ending.error.args[0] if ending.error and ending.error.args else "?"
    logger.log(level, getattr(celery_trace, words, words), context, extra={"data": context})


def _context(execution: Execution, ending: Ending) -> dict[str, Any]:
    return {
        "hostname": execution.hostname,
        "id": execution.id,
        "name": shown_name(execution),
        "exc": safe_repr(ending.error),
        "traceback": ending.traceback or "",
        "args": execution.argsrepr,
        "kwargs": execution.kwargsrepr,
        "description": ending.outcome.value,
        "reason": ending.reason,
        "hint": ending.hint,
        "internal": False,
        "request_id": execution.request_id,
    }
