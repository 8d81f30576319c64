"""What the bridge asks of a transport of kombu's: put, take, finish, give back.

A source is used by one thread, which owns its connection: :class:`celeriac.brokers.kombu_thread.SourceThread`. A
broker makes two of a kind: one puts, counts and purges, the other takes, finishes and gives back, so that nobody who
publishes waits for a consumer that waits.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from celeriac.brokers.base import Capabilities
from celeriac.brokers.kombu_sources.places import cleansed, place_of
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.message import Message

__all__ = ["Outgoing", "Source", "Taken"]


@dataclass(slots=True)
class Outgoing:
    """One message for one queue of the transport.

    ``delay`` in seconds is only for a source whose ``longest_delay`` allows it. ``exchange`` and ``routing_key`` are
    what the message says about its way; an empty routing key means the queue's name.
    """

    queue: str
    message: Message
    priority: int = 0
    delay: float = 0.0
    exchange: str = ""
    routing_key: str = ""


@dataclass(slots=True)
class Taken:
    """One message that the transport has handed over, and that has not ended.

    ``envelope`` is as in :class:`celeriac.brokers.base.Delivery`: bytes where they are kombu's envelope or could not be
    parsed, so that nothing is lost. ``handle`` is the source's own: a delivery tag, a receipt handle, a file's name.
    ``deliveries`` counts this one, as far as the transport counts.
    """

    queue: str
    envelope: bytes | Message
    handle: Any
    deliveries: int = 1


class Source(ABC):
    """One transport, seen from the one thread that owns its connection.

    Every method except ``wake`` is called in that thread only, may block, and raises what its driver raises: the
    thread translates it. A TypeError means a message that cannot be written, and is the caller's.

    Args:
        url: The broker's URL as the user wrote it, secrets included.
        options: Celery's ``broker_transport_options``.
        lease: Seconds after which what was taken and not finished is for others again, because its taker has died.
    """

    #: What the transport can do by itself.
    capabilities: ClassVar[Capabilities] = Capabilities()
    #: Whether messages stay in the transport under a lease that can be renewed.
    held: ClassVar[bool] = False
    #: Seconds of delay that the transport itself keeps.
    longest_delay: ClassVar[float] = 0.0
    #: What means that the server is gone. Anything else that a driver raises is told as what the server said.
    errors: tuple[type[BaseException], ...] = (OSError,)
    #: Seconds between two looks where a transport has to be asked; ``polling_interval`` among the options replaces it.
    polling_interval: float = 0.2

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, lease: float = 30.0) -> None:
        self.url = url
        self.options: dict[str, Any] = dict(options or {})
        self.lease = lease
        self.polling_interval = float(self.options.get("polling_interval") or self.polling_interval)
        self._awake = threading.Event()

    @classmethod  # noqa: B027 - importing the module was enough for most
    def load_driver(cls, url: str) -> None:
        """Import what the URL needs beyond this class's module. Reads files: not for the event loop.

        Raises ImportError with the ``name`` of what is missing, or ConfigurationError.
        """

    @property
    def place(self) -> str:
        """Where the transport is, without secrets."""
        return place_of(self.url)

    @property
    def identity(self) -> str:
        """What tells this transport from others of its kind, without secrets: two of one identity share messages."""
        return self.place

    @abstractmethod
    def open(self) -> None:
        """Connect, within some 10 seconds. Called again after ``close``, and after whatever went wrong."""

    @abstractmethod
    def close(self) -> None:
        """Release everything, connected or not.

        What was taken and not finished is for others, at the latest after a lease.
        """

    @abstractmethod
    def put(self, messages: Sequence[Outgoing]) -> None:
        """Write the messages. Returns only when the transport has them durably.

        Raises TypeError, before anything is written, for a message that the wire format cannot express, and
        PartlyPublished where the transport has some of them and not the others: the thread does not put those again.
        """

    @abstractmethod
    def take(self, queues: Sequence[str], limit: int, wait: float) -> list[Taken]:
        """Up to ``limit`` messages, fairly from the queues; waits up to ``wait`` seconds for the first.

        Whoever waits does it by ``pause``, or in slices of half a second at most, and returns once ``is_awake``.
        Never raises for a message that cannot be parsed.
        """

    @abstractmethod
    def finish(self, taken: Sequence[Taken]) -> None:
        """They are kept elsewhere or done: never deliver them again."""

    @abstractmethod
    def give_back(self, taken: Sequence[Taken]) -> None:
        """Let others have them at once."""

    def renew(self, taken: Sequence[Taken], lease: float) -> Sequence[Taken]:
        """Hold them for ``lease`` seconds from now. Returns those that were lost. For a source that holds."""
        raise NotImplementedError

    @abstractmethod
    def size(self, queue: str) -> int:
        """How many messages wait in the queue, as far as the transport can tell."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Delete what waits in the queue. Returns how many."""

    def explained(self, exc: BaseException) -> BrokerUnavailable:
        """The error that tells in one sentence what a driver's exception means; a source says more where it can."""
        if isinstance(exc, BrokerUnavailable):
            return exc
        said = (cleansed(str(exc), self.url).strip() or type(exc).__name__).splitlines()[0].rstrip(".")
        meaning = "cannot be reached" if isinstance(exc, self.errors) else "answered with an error"
        return BrokerUnavailable(f"The broker at {self.place} {meaning}: {said}.")

    @property
    def is_awake(self) -> bool:
        """Whether somebody wants the thread: who waits in ``take`` returns."""
        return self._awake.is_set()

    def pause(self, seconds: float) -> bool:
        """Sleep in ``take``. Returns whether somebody wants the thread."""
        return self._awake.wait(seconds)

    def wake(self) -> None:
        """Have ``take`` return what it has. From any thread."""
        self._awake.set()

    def doze(self) -> None:
        """Allow waiting again: the thread calls it before a call that nobody else waits behind."""
        self._awake.clear()
