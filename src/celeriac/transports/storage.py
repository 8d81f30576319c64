"""The port behind the transports: what kombu's exchanges, queues and leases need from a place that keeps messages.

Names are AMQP's. Times are seconds since the epoch, durations are seconds. Every method may raise
:exc:`celeriac.errors.BrokerUnavailable`, and any thread may call any method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

from celeriac.protocol.exchanges import Binding, QueueOptions
from celeriac.sql.messages import Draft, Ending, Taken
from celeriac.timing import system_now

__all__ = ["Binding", "Declaration", "Look", "Order", "QueueOptions", "Storage"]


class Declaration(NamedTuple):
    """A queue as its consumer declared it, with what it takes to bring it back."""

    queue: str
    options: QueueOptions
    bindings: tuple[Binding, ...]


class Order(NamedTuple):
    """What one channel would take: up to ``limit`` messages from its queues, leased or (``no_ack``) for good."""

    queues: tuple[str, ...]
    limit: int
    no_ack: bool


class Look(NamedTuple):
    """Whether a ``take`` could find something now, and when the next delay or lease ends."""

    found: bool
    next_due: float | None


class Storage(ABC):
    """Keeps messages, queues and bindings for every channel of this process, and for other processes."""

    def now(self) -> float:
        """The time by which messages are due."""
        return system_now()

    @abstractmethod
    def version(self) -> Hashable:
        """What is different after anything may have changed, whoever changed it. Costs next to nothing."""

    @abstractmethod
    def look(self, queues: Sequence[str]) -> Look:
        """Look for messages without disturbing anybody. May be wrong about ``found``, but only in saying yes."""

    @abstractmethod
    def take(self, orders: Sequence[Order], lease: float) -> Sequence[Sequence[Taken]]:
        """Take messages for each order, in one step: higher priority first, then oldest first."""

    @abstractmethod
    def put(self, drafts: Sequence[Draft]) -> None:
        """Store messages, all or none."""

    @abstractmethod
    def route(self, exchange: str, routing_key: str, draft: Draft) -> int:
        """Store a copy in every bound queue, in one step. Returns how many. Nearly free when nobody is bound."""

    @abstractmethod
    def settle(self, endings: Sequence[Ending]) -> Collection[str]:
        """End deliveries. Returns the tags that were void."""

    @abstractmethod
    def keep(self, tags: Sequence[str], lease: float, queues: Sequence[Declaration]) -> Collection[str]:
        """Renew leases, keep queues from expiring (one that is gone comes back), and drop what has expired elsewhere.

        Returns the tags that were void.
        """

    @abstractmethod
    def queue_options(self, queue: str) -> QueueOptions | None:
        """How the queue was declared, or None for one that was not."""

    @abstractmethod
    def declare(self, queue: str, options: QueueOptions) -> None:
        """Create the queue, or set its options anew. Changes nothing when there is nothing to change."""

    @abstractmethod
    def exists(self, queue: str) -> bool:
        """Whether the queue has been declared, or holds messages."""

    @abstractmethod
    def delete(self, queue: str) -> int:
        """Delete the queue with its bindings and what waits in it. Returns how many messages that were."""

    @abstractmethod
    def size(self, queue: str) -> int:
        """How many messages wait to be delivered now."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Delete what waits in the queue. Returns how many messages that were."""

    @abstractmethod
    def bind(self, binding: Binding) -> None:
        """Remember a binding."""

    @abstractmethod
    def unbind(self, bindings: Iterable[Binding]) -> None:
        """Forget bindings."""

    @abstractmethod
    def bindings(self, exchange: str | None = None) -> Sequence[Binding]:
        """The bindings of one exchange, or all."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that this storage holds open."""
