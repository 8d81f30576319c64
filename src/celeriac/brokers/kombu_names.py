"""Under which names the keeper has the queues of a transport, and what it keeps for them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from celeriac.brokers.base import DeadLetter, Delayed, Delivery, Publication
from celeriac.brokers.kombu_sources.base import Outgoing, Taken
from celeriac.errors import MalformedMessage
from celeriac.protocol import fields
from celeriac.protocol.envelope import decode
from celeriac.protocol.exchanges import Binding
from celeriac.protocol.message import Message

__all__ = ["Names", "as_publication", "outgoing", "raw", "unwrapped"]

#: The content type of what could not be parsed, and travels through the keeper as it came.
_RAW_TYPE = "application/x-celeriac-unparsed"
_RAW_MARK = _RAW_TYPE.encode()


class Names:
    """The private queues of one transport in a keeper: one for what was taken, one for what waits for its time.

    ``place`` tells transports apart, so that two apps with one keeper do not mix.
    """

    def __init__(self, place: str) -> None:
        self._ready = f"{place}#"
        self._later = f"{place}@"
        #: The exchange to which every queue of the transport that was ever used is bound: the list of them.
        self.all_queues = f"{place}#"

    def ready(self, queue: str) -> str:
        """Where what was taken from the queue waits for a worker."""
        return self._ready + queue

    def later(self, queue: str) -> str:
        """Where what is delayed waits until it is put into the transport."""
        return self._later + queue

    def public(self, name: str) -> str:
        """The transport's name of a private queue."""
        return name[len(self._ready) :]

    def listing(self, queue: str) -> Binding:
        """What makes the queue one of the known ones."""
        return Binding(self.all_queues, queue, self.ready(queue))

    def private_binding(self, bound: Binding) -> Binding:
        """A binding of an exchange of the transport, as the keeper has it."""
        return bound._replace(exchange=f"{self._ready}{bound.exchange}#")

    def private_exchange(self, exchange: str) -> str:
        """The keeper's name of an exchange."""
        return f"{self._ready}{exchange}#"

    def delivery(self, delivery: Delivery) -> Delivery:
        """A delivery of the keeper's as one of the transport's queue."""
        return Delivery(
            delivery.tag, self.public(delivery.queue), unwrapped(delivery.envelope), delivery.deliveries
        )

    def dead_letter(self, letter: DeadLetter) -> DeadLetter:
        """A dead letter of the keeper's as one of the transport's queue."""
        return replace(letter, queue=self.public(letter.queue), envelope=unwrapped(letter.envelope))

    def delayed(self, delayed: Delayed) -> Delayed:
        """What waits in the keeper, as waiting for the transport's queue."""
        return replace(delayed, queue=self.public(delayed.queue))

    def kept_for_later(self, publication: Publication) -> Publication:
        """A delayed publication, for the keeper."""
        return replace(publication, queue=self.later(publication.queue), bindings=())


def outgoing(publications: Iterable[Publication]) -> list[Outgoing]:
    """Publications to queues, as the transport gets them."""
    return [
        Outgoing(
            each.queue,
            each.message,
            each.priority,
            exchange=each.exchange,
            routing_key=each.routing_key or each.queue,
        )
        for each in publications
    ]


def as_publication(taken: Taken, queue: str) -> Publication:
    """What was taken, for a queue of the keeper's, where it waits for its ``eta``."""
    envelope = taken.envelope
    if not isinstance(envelope, Message):
        try:
            envelope = decode(envelope)
        except MalformedMessage:
            return raw(taken, queue)
    way = envelope.properties.get("delivery_info")
    way = way if isinstance(way, dict) else {}
    exchange, key, priority = way.get("exchange"), way.get("routing_key"), envelope.properties.get("priority")
    task_id = envelope.headers.get("id")
    eta = _eta(envelope)
    return Publication(
        envelope,
        queue,
        task_id if type(task_id) is str else "",
        exchange if type(exchange) is str else "",
        key if type(key) is str else taken.queue,
        min(max(priority, 0), 9) if type(priority) is int else 0,
        due=eta if eta is not None and eta > time.time() else None,
    )


def _eta(message: Message) -> float | None:
    """Before which time, in epoch seconds, the task must not start: stock clients send it long before."""
    try:
        eta = fields.moment(message.headers, "eta")
    except MalformedMessage:
        return None  # the worker says what is wrong with it
    return None if eta is None else eta.timestamp()


def raw(taken: Taken, queue: str) -> Publication:
    """What was taken, byte for byte: a worker finds that it is no message, and dead-letters it with the reason."""
    envelope = taken.envelope
    body = envelope.body if isinstance(envelope, Message) else envelope
    return Publication(Message({}, {}, body, _RAW_TYPE, "binary"), queue, routing_key=taken.queue)


def unwrapped(envelope: bytes | Message) -> bytes | Message:
    """The envelope, or the bytes that :func:`raw` has wrapped."""
    if isinstance(envelope, Message):
        return envelope.body if envelope.content_type == _RAW_TYPE else envelope
    if _RAW_MARK not in envelope:
        return envelope
    message = decode(envelope)
    return message.body if message.content_type == _RAW_TYPE else envelope
