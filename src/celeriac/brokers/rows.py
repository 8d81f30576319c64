"""Between the port's values and the rows that the embedded brokers keep."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from celeriac.brokers.base import DeadLetter, Delayed, Delivery, Publication, Settlement
from celeriac.protocol import envelope
from celeriac.protocol.settlement import Action
from celeriac.sql.messages import Buried, Draft, Ending, Taken, Waiting
from celeriac.sql.tables import DEAD, DELAYED, READY

__all__ = ["dead_letter", "delayed", "delivery", "drafts", "ending", "numbers", "rotated", "successors"]


def drafts(publications: Sequence[Publication]) -> list[Draft]:
    """The rows of publications. Raises TypeError for headers or properties that JSON cannot express."""
    batch = uuid4().hex  # makes tags unique as kombu's are, at the price of one for all
    return [_draft(publication, f"{batch}-{n}") for n, publication in enumerate(publications)]


def _draft(publication: Publication, delivery_tag: str) -> Draft:
    message, queue, priority = publication.message, publication.queue, publication.priority
    text = envelope.encode(
        message,
        exchange=publication.exchange,
        routing_key=publication.routing_key or queue,
        delivery_tag=delivery_tag,
        priority=priority,
    )
    task = message.headers.get("task")
    if type(task) is not str:
        task = ""
    return Draft(queue, text, priority, publication.due, publication.task_id, task)


def successors(settlements: Sequence[Settlement]) -> dict[str, list[Draft]]:
    """The rows that settlements publish, by the tag whose settlement must not be void. Raises as :func:`drafts`."""
    return {each.tag: drafts(each.publications) for each in settlements if each.publications}


def ending(settlement: Settlement, now: float) -> Ending:
    """What a settlement does to the row of its message."""
    match settlement.action:
        case Action.REQUEUE:
            state = READY if settlement.due is None else DELAYED
            return Ending(settlement.tag, state, settlement.due, settlement.counted)
        case Action.DEAD_LETTER:
            return Ending(settlement.tag, DEAD, now, reason=settlement.reason)
        case Action.ACKNOWLEDGE | Action.DISCARD:
            return Ending(settlement.tag)


def delivery(taken: Taken) -> Delivery:
    """A row under a lease, as a delivery."""
    return Delivery(taken.tag, taken.queue, taken.envelope, taken.deliveries)


def delayed(waiting: Waiting) -> Delayed:
    """A row that waits for its time, as the port has it."""
    return Delayed(waiting.queue, waiting.due, waiting.envelope.encode())


def dead_letter(buried: Buried) -> DeadLetter:
    """A dead row, as a dead letter."""
    return DeadLetter(
        id=str(buried.id),
        queue=buried.queue,
        task_id=buried.task_id,
        task=buried.task,
        reason=buried.reason,
        deliveries=buried.deliveries,
        at=buried.at,
        envelope=buried.envelope,
    )


def numbers(ids: Sequence[str]) -> list[int]:
    """The row ids among ``ids`` from outside; anything else names no row."""
    return [int(id_) for id_ in ids if id_.isascii() and id_.isdigit() and len(id_) < 19]


def rotated(queues: Sequence[str], turn: int) -> Sequence[str]:
    """``queues`` starting at another one each turn: the first ones have an advantage when a batch is small."""
    if len(queues) < 2:
        return queues
    start = turn % len(queues)
    return [*queues[start:], *queues[:start]]
