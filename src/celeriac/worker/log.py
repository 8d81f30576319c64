"""One line when a task is received, one when it has ended: Celery's words, so that what reads its logs reads ours."""

from __future__ import annotations

import logging

from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from celeriac.protocol.settlement import Outcome
from celeriac.worker.ending import Ending
from celeriac.worker.execution import Execution

__all__ = ["log_ending", "log_received"]

logger = get_logger(__name__)

_WORDS: dict[Outcome, tuple[int, str]] = {
    Outcome.RETRIED: (logging.INFO, "retry: %s"),
    Outcome.IGNORED: (logging.INFO, "ignored"),
    Outcome.REJECTED: (logging.WARNING, "rejected: %s"),
    Outcome.REJECTED_REQUEUE: (logging.WARNING, "rejected, and back in its queue: %s"),
    Outcome.REVOKED: (logging.INFO, "revoked"),
    Outcome.EXPIRED: (logging.INFO, "expired before it could run"),
    Outcome.HANDED_BACK: (logging.INFO, "handed back: the worker shuts down"),
    Outcome.UNKNOWN_TASK: (
        logging.ERROR,
        "parked, this worker does not know the task: is its module in `include`?",
    ),
    Outcome.EXHAUSTED: (logging.ERROR, "dead-lettered: %s"),
    Outcome.TIMED_OUT: (logging.ERROR, "stopped by its hard time limit: %s"),
    Outcome.WORKER_LOST: (logging.WARNING, "left to another worker: its lease had ended"),
}


def log_received(execution: Execution) -> None:
    """``Task name[id] received``."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("Task %s[%s] received", execution.message.shadow or execution.name, execution.id)


def log_ending(execution: Execution, ending: Ending) -> None:
    """``Task name[id] succeeded in 0.1s: value``, or what else became of it."""
    name = execution.message.shadow or execution.name
    if ending.succeeded:
        if logger.isEnabledFor(logging.INFO) and execution.started:
            shown = saferepr(ending.value, 1024)
            logger.info("Task %s[%s] succeeded in %ss: %s", name, execution.id, execution.runtime, shown)
        return
    if ending.outcome is Outcome.FAILED and ending.error is not None:
        _log_failure(execution, name, ending.error)
        return
    if ending.outcome is Outcome.UNKNOWN_TASK and execution.delivery.deliveries > 1:
        return  # said when it came first
    level, words = _WORDS.get(ending.outcome, (logging.INFO, ending.outcome.name))
    if logger.isEnabledFor(level):
        text = words % (ending.reason or ending.error) if "%s" in words else words
        logger.log(level, "Task %s[%s] %s", name, execution.id, text)


def _log_failure(execution: Execution, name: str, error: BaseException) -> None:
    throws = getattr(execution.task, "throws", ()) or ()
    if throws and isinstance(error, throws):
        logger.info("Task %s[%s] raised expected: %r", name, execution.id, error)
    else:
        logger.error("Task %s[%s] raised unexpected: %r", name, execution.id, error, exc_info=error)
