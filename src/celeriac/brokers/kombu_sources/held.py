"""What more is asked of a transport where messages stay under a lease until they are finished."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import uuid4

from celeriac.brokers.kombu_sources.base import Outgoing, Source
from celeriac.errors import MalformedMessage
from celeriac.protocol import envelope, fields

__all__ = ["HeldSource", "Sealed", "eta_in", "properties_in", "sealed"]

#: In envelopes without it there is no need to look for a time.
_ETA = re.compile(rb'"eta": ?"')


@dataclass(slots=True)
class Sealed:
    """A message for one queue whose envelope has been made, so that it can be sent without being read.

    ``delay`` is in seconds. ``deliveries`` is how often earlier copies of it were delivered. ``properties`` are those
    of the message that say something to the transport.
    """

    queue: str
    envelope: bytes
    delay: float = 0.0
    deliveries: int = 0
    properties: Mapping[str, Any] = field(default_factory=dict)


class HeldSource(Source):
    """A transport that leases what it hands over, and counts deliveries. Several of one kind work side by side.

    ``renew`` with 0 or more seconds says when a message is for others, too: it is how one is put off.
    """

    held: ClassVar[bool] = True
    #: Seconds for which a message can be kept from others, from the moment that it was taken.
    longest_hold: ClassVar[float] = 0.0
    #: Properties of a message that the transport reads and that are no part of its envelope.
    beside_envelope: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def identity(self) -> str:
        """Names this place among all that one keeper may serve; no secrets."""

    @property
    @abstractmethod
    def longest_wait(self) -> float:
        """Seconds that ``take`` may wait for a first message, in one call that cannot be cut short."""

    @abstractmethod
    def delay_in(self, queue: str) -> float:
        """Seconds that the transport itself can delay a message for this queue."""

    @abstractmethod
    def keeps_order_in(self, queue: str) -> bool:
        """Whether a copy at the end of the queue would change the order that its publisher relies on."""

    @abstractmethod
    def check(self, message: Sealed) -> None:
        """Raise BrokerUnavailable for a message that can be seen to be refused. From any thread."""

    @abstractmethod
    def send(self, messages: Sequence[Sealed]) -> Mapping[int, Exception]:
        """Write the messages, and return when the transport has them durably: all but those, by their place, that it
        has not taken, with what the driver said."""

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Write the messages. Raises TypeError, before anything is written, for what JSON cannot express."""
        made = [sealed(each, self.beside_envelope) for each in messages]
        for each in made:
            self.check(each)
        for error in self.send(made).values():
            raise error


def sealed(outgoing: Outgoing, beside_envelope: frozenset[str] = frozenset()) -> Sealed:
    """The message with its envelope made, as kombu makes it. Raises TypeError for what JSON cannot express."""
    message, properties = outgoing.message, outgoing.message.properties
    if not beside_envelope.isdisjoint(properties):
        inside = {name: value for name, value in properties.items() if name not in beside_envelope}
        message = type(message)(
            message.headers, inside, message.body, message.content_type, message.content_encoding
        )
    text = envelope.encode(
        message,
        exchange=outgoing.exchange,
        routing_key=outgoing.routing_key or outgoing.queue,
        delivery_tag=uuid4().hex,
        priority=outgoing.priority,
    )
    return Sealed(outgoing.queue, text.encode(), outgoing.delay, properties=properties)


def properties_in(made: bytes) -> Mapping[str, Any]:
    """The properties in an envelope; none where it cannot be read."""
    try:
        return envelope.decode(made).properties
    except MalformedMessage:
        return {}


def eta_in(made: bytes) -> float | None:
    """Before which time, in epoch seconds, the message in an envelope must not be started, if it says so."""
    if _ETA.search(made) is None:
        return None
    try:
        eta = fields.moment(envelope.decode(made).headers, "eta")
    except MalformedMessage:
        return None  # the worker says what is wrong with it
    return None if eta is None else eta.timestamp()
