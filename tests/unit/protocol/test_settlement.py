"""The settlement table, against what Celery's own request does with its message."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request
from kombu.transport.virtual.base import Channel

from celeriac.protocol.settlement import AckSettings, Action, Outcome, decide

BOOLS = (False, True)
MAYBE = (None, *BOOLS)
EVERY_SETTING = [AckSettings(*values) for values in itertools.product(BOOLS, BOOLS, BOOLS, MAYBE, MAYBE)]

RAISED = {
    Outcome.FAILED: ValueError("no"),
    Outcome.IGNORED: Ignore(),
    Outcome.REJECTED: Reject("no", requeue=False),
    Outcome.REJECTED_REQUEUE: Reject("no", requeue=True),
    Outcome.RETRIED: Retry(),
    Outcome.TIMED_OUT: TimeLimitExceeded(1),
    Outcome.WORKER_LOST: WorkerLostError("gone"),
}


def settled_by_celery(stock: Any, settings: AckSettings, end: Callable[[Request], object]) -> Action:
    """What a stock worker does with the message of a task that ended so."""
    task = stock.task
    task.acks_late, task.reject_on_worker_lost = settings.acks_late, settings.reject_on_worker_lost
    task.acks_on_failure, task.acks_on_timeout = (
        settings.effective("acks_on_failure"),
        settings.effective("acks_on_timeout"),
    )
    done: list[Action] = []
    [raw] = stock.sent(task.delay)
    request = Request(
        Channel.Message(raw, channel=Channel.__new__(Channel)),
        app=stock.app,
        task=task,
        on_ack=lambda *_: done.append(Action.ACKNOWLEDGE),
        on_reject=lambda _log, _errors, requeue: done.append(
            Action.REQUEUE if requeue else Action.DEAD_LETTER
        ),
    )
    request.on_accepted(pid=1, time_accepted=0.0)
    end(request)
    [action] = done
    return action


def raised(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except type(error):
        return ExceptionInfo()


ENDS: list[tuple[Outcome, Callable[[Request], object]]] = [
    (Outcome.SUCCEEDED, lambda request: request.on_success((False, None, 0.1))),
    # A hard time limit reaches Celery in either of two ways.
    (Outcome.TIMED_OUT, lambda request: request.on_timeout(soft=False, timeout=1)),
    *[
        (outcome, lambda request, error=error: request.on_failure(raised(error)))
        for outcome, error in RAISED.items()
    ],
]


@pytest.mark.parametrize(("outcome", "end"), ENDS)
def test_the_table_says_what_celery_does(
    stock: Any, outcome: Outcome, end: Callable[[Request], object]
) -> None:
    for settings in EVERY_SETTING:
        assert decide(outcome, settings) is settled_by_celery(stock, settings, end), settings


def test_every_outcome_is_decided_under_every_setting() -> None:
    for outcome, settings, started in itertools.product(Outcome, [None, *EVERY_SETTING], BOOLS):
        assert isinstance(decide(outcome, settings, started=started), Action)


def test_before_the_start_no_setting_matters() -> None:
    for settings in [None, *EVERY_SETTING]:
        assert decide(Outcome.REVOKED, settings) is Action.ACKNOWLEDGE
        assert decide(Outcome.EXPIRED, settings) is Action.ACKNOWLEDGE
        assert decide(Outcome.HANDED_BACK, settings) is Action.REQUEUE
        assert decide(Outcome.UNKNOWN_TASK, settings) is Action.REQUEUE
        assert decide(Outcome.MALFORMED, settings) is Action.DEAD_LETTER
        assert decide(Outcome.EXHAUSTED, settings) is Action.DEAD_LETTER


def test_a_started_task_is_handed_back_only_if_it_is_acknowledged_late() -> None:
    assert decide(Outcome.HANDED_BACK, AckSettings(acks_late=True), started=True) is Action.REQUEUE
    assert decide(Outcome.HANDED_BACK, AckSettings(acks_late=False), started=True) is Action.ACKNOWLEDGE


def test_with_early_acknowledgement_nothing_comes_back_after_the_start() -> None:
    for outcome, settings in itertools.product(Outcome, EVERY_SETTING):
        if not settings.acks_late:
            assert decide(outcome, settings, started=True) is Action.ACKNOWLEDGE
