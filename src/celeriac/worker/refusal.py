"""Why a delivery is not executed: exhausted, unknown, revoked, expired."""

from __future__ import annotations

from collections.abc import Container

from celery import states
from celery.exceptions import NotRegistered, TaskRevokedError, WorkerLostError
from kombu.message import Message as KombuMessage

from celeriac.brokers.base import Delivery
from celeriac.errors import MalformedMessage
from celeriac.protocol import envelope
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Outcome
from celeriac.worker.ending import Ending, exception_json
from celeriac.worker.execution import Execution

__all__ = ["raw_message", "refusal_of"]


#: What to do about a task that this worker does not have.
_UNKNOWN = "this worker does not know the task: is its module in `include`?"
_ONLY_A_STUB = (
    "it is a stub in this worker, which has not the task's function: let another worker, which has it, "
    "consume from %s, or import its module here."
)


def refusal_of(
    execution: Execution, *, revoked: bool, delivery_limit: int, stubs: Container[str] = ()
) -> Ending | None:
    """The ending of a delivery that must not run, or ``None``.

    ``delivery_limit`` is how many deliveries without an outcome a message gets; ``stubs`` are the names of tasks that
    can be enqueued here, and not run.
    """
    if revoked:
        return _ended(Outcome.REVOKED, states.REVOKED, TaskRevokedError("revoked"))
    if execution.has_expired:
        return _ended(Outcome.EXPIRED, states.REVOKED, TaskRevokedError("expired"))
    if execution.task is None:
        unknown = NotRegistered(execution.name)
        is_stub = execution.name in stubs
        reason = f"unknown task {execution.name!r}" + (", a stub in this worker" if is_stub else "")
        if execution.delivery.deliveries < delivery_limit:
            hint = _ONLY_A_STUB % execution.delivery.queue if is_stub else _UNKNOWN
            return Ending(Outcome.UNKNOWN_TASK, None, error=unknown, reason=reason, hint=hint)
        return _ended(Outcome.EXHAUSTED, states.FAILURE, unknown, reason)
    if execution.delivery.deliveries > delivery_limit:
        reason = f"delivered {delivery_limit} times without an outcome: it may have killed its workers"
        return _ended(Outcome.EXHAUSTED, states.FAILURE, WorkerLostError(reason), reason)
    return None


def _ended(outcome: Outcome, state: str, error: BaseException, reason: str = "") -> Ending:
    return Ending(outcome, state, error=error, reason=reason or str(error), result=exception_json(error))


def raw_message(delivery: Delivery) -> KombuMessage:
    """A delivery as receivers of ``task_unknown`` and ``task_rejected`` know it; nothing can be settled by it."""
    carried = delivery.envelope
    if not isinstance(carried, Message):
        try:
            carried = envelope.decode(carried)
        except MalformedMessage:
            return KombuMessage(body=carried, delivery_tag=delivery.tag, headers={}, properties={})
    return KombuMessage(
        body=carried.body,
        delivery_tag=delivery.tag,
        content_type=carried.content_type,
        content_encoding=carried.content_encoding,
        delivery_info={**(carried.properties.get("delivery_info") or {}), "routing_key": delivery.queue},
        headers=dict(carried.headers),
        properties=dict(carried.properties),
    )
