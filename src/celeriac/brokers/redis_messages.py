"""Between the port's values and the texts that are in Redis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any
from uuid import uuid4

from celeriac.brokers.base import DeadLetter, Delayed, Delivery, Publication, Settlement
from celeriac.brokers.redis_keys import Layout
from celeriac.errors import MalformedMessage
from celeriac.protocol import envelope, fields
from celeriac.protocol.settlement import Action

__all__ = [
    "Batch",
    "Tags",
    "dead_letter",
    "delayed_messages",
    "deliveries",
    "draft_batch",
    "envelope_of",
    "priority_of",
    "settle_arguments",
]

#: What precedes the delivery count in an envelope, and what that count is while nobody has had the message.
_MARK = b'{"celeriac-deliveries": '
_DELAYED = b"0"

#: Digits of a count that are read; somebody may have written thousands, which Python makes no number of.
_DIGITS = 15

_ETA = b'"eta":'
_NONE = (b" null", b"null")  # as kombu writes it, and as terser encoders do

_ACTIONS = {
    Action.ACKNOWLEDGE: "gone",
    Action.DISCARD: "gone",
    Action.REQUEUE: "back",
    Action.DEAD_LETTER: "dead",
}


class Batch:
    """Publications as Redis wants them: envelopes by queue and step, and the delayed ones."""

    __slots__ = ("delayed", "lists")

    def __init__(self) -> None:
        self.lists: dict[tuple[str, str], list[str]] = {}
        self.delayed: list[tuple[str, str, float, str]] = []

    def arguments(self) -> list[Any]:
        """The arguments of the script that publishes."""
        arguments: list[Any] = [len(self.lists)]
        for (queue, step), texts in self.lists.items():
            arguments += (queue, step, len(texts), *texts)
        for delayed in self.delayed:
            arguments += delayed
        return arguments


def draft_batch(publications: Sequence[Publication], layout: Layout) -> Batch:
    """Encode publications. Raises TypeError for headers or properties that JSON cannot express."""
    batch = Batch()
    lists, base = (
        batch.lists,
        uuid4().hex,
    )  # makes delivery tags unique as kombu's are, at the price of one for all
    for number, publication in enumerate(publications):
        step, text = envelope_of(publication, layout, f"{base}-{number}")
        if publication.due is not None:
            batch.delayed.append((publication.queue, step, publication.due, text))
            continue
        place = (publication.queue, step)
        texts = lists.get(place)
        if texts is None:
            lists[place] = [text]
        else:
            texts.append(text)
    return batch


def envelope_of(publication: Publication, layout: Layout, delivery_tag: str) -> tuple[str, str]:
    """The step and the envelope. The step is that of the priority in the envelope, where a stock worker looks."""
    message, queue = publication.message, publication.queue
    text = envelope.encode(
        message,
        exchange=publication.exchange,
        routing_key=publication.routing_key or queue,
        delivery_tag=delivery_tag,
        priority=publication.priority,
    )
    given = publication.priority or message.properties.get("priority")
    return layout.step_of[priority_of(given) if given else 0], text


def priority_of(given: Any) -> int:
    """What kombu makes of a message's priority: 0 to 9."""
    try:
        return max(0, min(int(given), 9))
    except (TypeError, ValueError):
        return 0


def settle_arguments(settlements: Sequence[Settlement], layout: Layout) -> list[Any]:
    """The arguments of the script that settles. Of two settlements of one delivery the first counts."""
    arguments: list[Any] = []
    first: dict[str, Settlement] = {}
    for each in settlements:
        first.setdefault(each.tag, each)
    for each in first.values():
        due = "" if each.due is None else each.due
        counts = "1" if each.counted else ""
        arguments += (each.tag, _ACTIONS[each.action], due, counts, json.dumps(each.reason))
        arguments.append(len(each.publications))
        base = uuid4().hex if each.publications else ""
        for number, publication in enumerate(each.publications):
            step, text = envelope_of(publication, layout, f"{base}-{number}")
            when = "" if publication.due is None else publication.due
            arguments += (publication.queue, step, when, text)
    return arguments


class Tags:
    """The ends of tags, which are the same for every receive."""

    def __init__(self, layout: Layout) -> None:
        self._ends: list[list[str]] = [[] for _ in layout.steps]
        self._steps = layout.steps

    def ends(self, step: int, count: int) -> list[str]:
        """At least the first ``count`` of a step: what follows the base."""
        ends = self._ends[step]
        if len(ends) < count:
            ends += [f".{number:04d}~{self._steps[step]}" for number in range(len(ends) + 1, count + 1)]
        return ends


def deliveries(
    groups: Sequence[int], texts: Sequence[bytes], queues: Sequence[str], base: str, tags: Tags
) -> tuple[list[Delivery], list[tuple[int, float]]]:
    """What a receive has taken, and the places of those that its publisher wants delivered later, with the time."""
    found: list[Delivery] = []
    early: list[tuple[int, float]] = []
    rest = iter(texts)
    place = 0
    eta_length = len(_ETA)
    for group in range(0, len(groups), 3):
        queue, count = queues[groups[group] - 1], groups[group + 2]
        ends = tags.ends(groups[group + 1] - 1, place + count)
        for text in islice(rest, count):
            number, delayed = 1, False
            if text.startswith(_MARK):
                number, text, delayed = _unmarked(text)
            at = text.find(_ETA)
            if at > 0 and not delayed and not text.startswith(_NONE, at + eta_length):
                eta = _eta(text)
                if eta is not None:
                    early.append((place, eta))
            found.append(Delivery(base + ends[place], queue, text, number))
            place += 1
    return found, early


def _unmarked(text: bytes) -> tuple[int, bytes, bool]:
    """The number of this delivery, the envelope as published, and whether it comes from among the delayed."""
    count, separator, rest = text[len(_MARK) :].partition(b", ")
    if not separator or not count.isdigit():
        return 1, text, False
    return int(count[:_DIGITS]) + 1, b"{" + rest, count == _DELAYED


def _eta(text: bytes) -> float | None:
    try:
        eta = fields.moment(envelope.decode(text).headers, "eta")
    except MalformedMessage:
        return None  # whoever decodes it for good will say so
    return None if eta is None else eta.timestamp()


def delayed_messages(queue: str, found: Sequence[Any]) -> list[Delayed]:
    """What a sorted set of delayed messages has, with its scores: in pairs, or one after the other as in RESP2."""
    pairs = (
        found if found and isinstance(found[0], (list, tuple)) else zip(found[::2], found[1::2], strict=True)
    )
    delayed = []
    for member, due in pairs:
        text = member.partition(b":")[2]
        if text.startswith(_MARK):
            text = _unmarked(text)[1]
        delayed.append(Delayed(queue, float(due), text))
    return delayed


def dead_letter(id_: bytes, letter: bytes) -> DeadLetter:
    """A dead letter as the script keeps it."""
    at, _, queue, reason, text = letter.split(b"\n", 4)
    number = 1
    if text.startswith(_MARK):
        number, text, _ = _unmarked(text)
        number -= 1  # its copy counts the delivery that it died of
    task_id, task = _identity(text)
    return DeadLetter(
        id=id_.decode(),
        queue=json.loads(queue),
        task_id=task_id,
        task=task,
        reason=json.loads(reason),
        deliveries=number,
        at=float(at),
        envelope=text,
    )


def _identity(text: bytes) -> tuple[str, str]:
    try:
        headers = envelope.decode(text).headers
    except MalformedMessage:
        return "", ""
    task_id, task = headers.get("id"), headers.get("task")
    return task_id if type(task_id) is str else "", task if type(task) is str else ""
