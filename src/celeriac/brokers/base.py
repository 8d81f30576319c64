"""The broker port: what a worker and a publisher may ask of any broker.

Everything takes batches, so that nothing costs one round trip per task under load. A broker never knows what a
task's result is, nor that a store exists.

What is made for every task (Publication, Delivery, Settlement) is not frozen, because that triples the price of making
it; nobody changes one that was made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from celeriac.errors import BrokerUnavailable, CeleriacError
from celeriac.protocol.exchanges import Binding
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action

__all__ = [
    "Broker",
    "Capabilities",
    "DeadLetter",
    "Delayed",
    "Delivery",
    "PartlyPublished",
    "Publication",
    "Received",
    "Settlement",
]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a broker can do by itself; the rest is made good above it or refused with a reason.

    ``atomic``: whether a batch is published all or none. ``fanout``: whether remote control and events reach other
    processes. ``peek``: whether what is delayed can be looked at, counted and purged. ``shared_view``: whether each
    client that looks sees all that waits; where a broker pushes messages, one of them has it. ``lists_bindings``:
    whether it tells the bindings of an exchange. ``any_text``: whether queues and headers may have any characters.
    ``any_size``: whether messages may be of a megabyte. ``ordered``: whether what was published first is delivered
    first.
    """

    delay: bool = True
    priority: bool = True
    lease: bool = True
    delivery_count: bool = True
    dead_letters: bool = True
    between_processes: bool = True
    durable: bool = True
    atomic: bool = True
    exchanges: bool = True
    fanout: bool = True
    peek: bool = True
    shared_view: bool = True
    lists_bindings: bool = True
    any_text: bool = True
    any_size: bool = True
    ordered: bool = True


@dataclass(slots=True)
class Publication:
    """One message on its way to one queue, or, where ``queue`` is empty, to those that an exchange finds for it.

    ``due`` is the earliest time of delivery in seconds since the epoch; ``None`` means at once.
    ``priority`` is 0 to 9, higher first, on every broker.
    ``exchange_type`` and ``bindings`` are what its publisher knows of the exchange; the broker knows more bindings,
    made by others.
    """

    message: Message
    queue: str
    task_id: str = ""
    exchange: str = ""
    routing_key: str = ""
    priority: int = 0
    due: float | None = None
    exchange_type: str = "direct"
    bindings: tuple[Binding, ...] = ()


@dataclass(slots=True)
class Delivery:
    """A message handed to one consumer under a lease.

    ``tag`` names this one delivery: after the lease has ended and the message was delivered again, it is void.
    ``envelope`` is kombu's virtual envelope as bytes, which the worker decodes (a malformed one must not hurt the
    rest of its batch), or a Message where the broker's own protocol has structure.
    ``deliveries`` counts this one: 1 is the first.
    """

    tag: str
    queue: str
    envelope: bytes | Message
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class Received:
    """What one ``receive`` found, and when the next delayed or leased message falls due (seconds since the epoch)."""

    deliveries: Sequence[Delivery]
    next_due: float | None = None


@dataclass(slots=True)
class Settlement:
    """The end of one delivery.

    ``due``: for a requeue, the earliest time of its next delivery, in seconds since the epoch.
    ``counted``: for a requeue, whether this delivery stays in the delivery count (a message handed back by a worker
    that shuts down has done nothing wrong).
    ``publications`` are published in the same step as the settlement where the broker has transactions, and before
    it everywhere else: a retry is never lost between the two.
    """

    tag: str
    action: Action
    due: float | None = None
    counted: bool = True
    reason: str = ""
    publications: tuple[Publication, ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that nobody delivers again unless it is replayed. ``id`` is the broker's; ``at`` is epoch seconds."""

    id: str
    queue: str
    task_id: str
    task: str
    reason: str
    deliveries: int
    at: float
    envelope: bytes | Message


@dataclass(frozen=True, slots=True)
class Delayed:
    """A message that waits for its time: ``due``, in epoch seconds."""

    queue: str
    due: float
    envelope: bytes | Message


class PartlyPublished(BrokerUnavailable):
    """Some of a batch are the broker's, by their positions in it, and others are not, because of ``error``."""

    def __init__(self, published: Collection[int], error: Exception) -> None:
        super().__init__(str(error))
        self.published = frozenset(published)
        self.error = error
        self.permanent = not isinstance(error, CeleriacError) or getattr(error, "permanent", False)


class Broker(ABC):
    """Moves messages between processes.

    A broker belongs to the event loop that opened it. Every method may raise
    :exc:`celeriac.errors.BrokerUnavailable`, and none lets a driver's own exception out.
    """

    capabilities: Capabilities = Capabilities()

    #: Seconds that a delivery belongs to its consumer before it is delivered again, unless renewed.
    lease: float = 30.0

    @property
    def sure_for(self) -> float:
        """Seconds that a delivery is its consumer's, although nobody has renewed it or heard of it."""
        return self.lease

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create what is missing. Safe to call twice."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything. Unsettled deliveries stay leased and come back when their lease ends."""

    @abstractmethod
    async def publish(self, publications: Sequence[Publication]) -> None:
        """Store the messages durably, all or none. When it returns, they are the broker's.

        Raises ``celery.exceptions.QueueNotFound`` for a message to an exchange that would reach no queue, and, where
        ``capabilities.atomic`` is not true, :class:`PartlyPublished`.
        """

    async def reply(self, answers: Sequence[Publication]) -> None:
        """Publish to queues that were made by who reads them. One that is gone, or full, is not missed."""
        await self.publish(answers)

    @abstractmethod
    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Let queues have what is published to exchanges, by whichever process."""

    @abstractmethod
    async def bindings(self, exchange: str) -> Sequence[Binding]:
        """The bindings of an exchange, whoever made them."""

    @abstractmethod
    async def receive(self, queues: Sequence[str], limit: int) -> Received:
        """Take up to ``limit`` messages that are due, each under a fresh lease, without waiting.

        Atomic: a process killed at any instruction loses nothing. Higher priority first, then oldest first, and no
        queue starves another. Messages whose lease ended are due again. Not to be cancelled: what a cancelled call
        has taken comes back only when its lease ends.
        """

    @abstractmethod
    async def wait(self, queues: Sequence[str], timeout: float | None = None) -> None:
        """Return when a message may have become due in a queue, or after ``timeout`` seconds. May be cancelled."""

    async def rest(self) -> None:  # noqa: B027 - most hand over only what is asked for
        """Nobody receives any more for now: have nothing pushed, and give back what was pushed and not received.

        Deliveries that were received stay as they are. ``receive`` and ``wait`` begin again.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """End deliveries. Returns the tags that were void: their lease had ended and somebody else has the message."""

    @abstractmethod
    async def renew(self, tags: Sequence[str]) -> Collection[str]:
        """Start the leases of these deliveries anew. Returns the tags that were void.

        Where there are no leases, what the server says of the connection is waited for.
        """

    @abstractmethod
    def renewer(self) -> Broker | None:
        """Another client, not open yet, by which a thread of its own renews the leases of this one's deliveries.

        ``None`` where nothing need be renewed: a delivery is its consumer's as long as the connection lives.
        """

    def on_lost(self, listener: Callable[[Collection[str]], None]) -> None:  # noqa: B027 - most have nothing to tell
        """Have ``listener`` called, on the broker's loop, with tags that became void before their lease ended.

        Where a delivery belongs to a connection, the end of the connection hands it to somebody else. Nothing to tell
        where leases alone decide.
        """

    @abstractmethod
    async def size(self, queue: str) -> int:
        """How many messages wait to be delivered now: neither delayed, nor leased, nor dead."""

    async def delayed(self, queue: str, limit: int = 100) -> Sequence[Delayed]:
        """What waits for its time in the queue, the earliest first. Nothing where a broker cannot tell."""
        return []

    @abstractmethod
    async def purge(self, queue: str) -> int:
        """Delete every waiting and delayed message of the queue; leased ones stay. Returns how many."""

    @abstractmethod
    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """The dead letters of one queue, or of all, newest first."""

    @abstractmethod
    async def replay(self, ids: Sequence[str]) -> int:
        """Put dead letters back into their queues with a fresh delivery count. Returns how many were found."""
