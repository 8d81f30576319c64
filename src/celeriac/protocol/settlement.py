"""What becomes of a message: one table from a task's outcome and its acknowledgement settings to an action.

The rows follow ``Request.on_success``, ``on_retry``, ``on_failure`` and ``on_timeout`` of :mod:`celery.worker.request`,
and what Celery documents for ``task_acks_late``, ``task_acks_on_failure``, ``task_acks_on_timeout`` and
``task_reject_on_worker_lost`` (https://docs.celeryq.dev/en/stable/userguide/configuration.html). Where Celery rejects
without requeueing, the message goes to the dead letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["AckSettings", "Action", "Outcome", "decide"]


class Action(Enum):
    """What becomes of a delivered message."""

    ACKNOWLEDGE = "acknowledge"
    REQUEUE = "requeue"
    DISCARD = "discard"
    DEAD_LETTER = "dead-letter"


class Outcome(Enum):
    """How a delivery ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"
    IGNORED = "ignored"
    REJECTED = "rejected"
    REJECTED_REQUEUE = "rejected, to be requeued"
    TIMED_OUT = "timed out"  # hard limit
    WORKER_LOST = "worker lost"
    REVOKED = "revoked"
    EXPIRED = "expired"
    HANDED_BACK = "handed back"  # the worker shuts down
    UNKNOWN_TASK = "unknown task"  # still within its grace period
    MALFORMED = "malformed"
    EXHAUSTED = "exhausted"  # delivered more often than the limit


@dataclass(frozen=True, slots=True)
class AckSettings:
    """A task's acknowledgement settings, under Celery's names; the defaults are celeriac's.

    ``acks_on_failure`` and ``acks_on_timeout`` fall back to ``acks_on_failure_or_timeout`` when they are ``None``.
    """

    acks_late: bool = True
    acks_on_failure_or_timeout: bool = True
    reject_on_worker_lost: bool = False
    acks_on_failure: bool | None = None
    acks_on_timeout: bool | None = None

    def effective(self, setting: str) -> bool:
        """The value of a setting, its fallback applied."""
        value: bool | None = getattr(self, setting)
        return self.acks_on_failure_or_timeout if value is None else value


_ACK, _REQUEUE, _DEAD = Action.ACKNOWLEDGE, Action.REQUEUE, Action.DEAD_LETTER

# Outcomes of a task that has started. The first row whose setting has that value decides; "" is any setting.
# With early acknowledgement the message is gone before the start, so that ACKNOWLEDGE changes nothing any more.
_STARTED: dict[Outcome, tuple[tuple[str, bool, Action], ...]] = {
    Outcome.SUCCEEDED: (("", True, _ACK),),
    Outcome.RETRIED: (("", True, _ACK),),  # the next attempt is a message of its own
    Outcome.IGNORED: (("", True, _ACK),),
    Outcome.FAILED: (
        ("acks_late", False, _ACK),
        ("acks_on_failure", True, _ACK),
        ("acks_on_failure", False, _DEAD),
    ),
    Outcome.TIMED_OUT: (
        ("acks_late", False, _ACK),
        ("acks_on_timeout", True, _ACK),
        ("acks_on_timeout", False, _REQUEUE),
    ),
    Outcome.WORKER_LOST: (
        ("acks_late", False, _ACK),
        ("reject_on_worker_lost", True, _REQUEUE),
        ("acks_on_failure", True, _ACK),
        ("acks_on_failure", False, _DEAD),
    ),
    Outcome.REJECTED: (
        ("acks_late", False, _ACK),
        ("acks_late", True, _DEAD),
    ),
    Outcome.REJECTED_REQUEUE: (
        ("acks_late", False, _ACK),
        ("acks_late", True, _REQUEUE),
    ),
}

# Outcomes that are possible before the start, when no setting has acknowledged anything yet.
_UNSTARTED: dict[Outcome, Action] = {
    Outcome.REVOKED: _ACK,
    Outcome.EXPIRED: _ACK,
    Outcome.HANDED_BACK: _REQUEUE,
    Outcome.UNKNOWN_TASK: _REQUEUE,  # parked: another worker, or the next release, may know it
    Outcome.MALFORMED: _DEAD,
    Outcome.EXHAUSTED: _DEAD,
}


def decide(outcome: Outcome, settings: AckSettings | None = None, *, started: bool = False) -> Action:
    """What becomes of the message of a delivery that ended in ``outcome``.

    Args:
        outcome: How the delivery ended.
        settings: The task's; ``None`` means the defaults, for a task that nobody knows.
        started: Whether the task had started. It matters only to outcomes that are possible before and after.

    Returns:
        The action. ``ACKNOWLEDGE`` is also the answer when early acknowledgement has done just that already.
    """
    settings = settings or _DEFAULTS
    if outcome in _UNSTARTED:
        return Action.ACKNOWLEDGE if started and not settings.acks_late else _UNSTARTED[outcome]
    for setting, value, action in _STARTED[outcome]:
        if not setting or settings.effective(setting) is value:
            return action
    raise AssertionError(f"no row decides {outcome}")  # pragma: no cover


_DEFAULTS = AckSettings()
