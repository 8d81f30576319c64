"""The consumers of one channel, and the messages that were taken for them and not handed over yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celeriac.sql.messages import Taken
from celeriac.transports.storage import Order

__all__ = ["Arrival", "Inbox", "Subscription"]

#: Messages taken at once for consumers without a prefetch limit.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Subscription:
    """A consumer on one queue."""

    queue: str
    no_ack: bool
    callback: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that was taken and waits for its turn to be delivered."""

    message: Any
    taken: Taken
    no_ack: bool


class Inbox:
    """Belongs to the thread that drains the channel; other threads may ask, and change nothing."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, Subscription] = {}
        self._arrivals: deque[Arrival] = deque()
        self._turn = 0

    @property
    def has_arrivals(self) -> bool:
        """Whether messages wait here."""
        return bool(self._arrivals)

    @property
    def has_consumers(self) -> bool:
        """Whether there is anybody to take messages for."""
        return bool(self._subscriptions)

    @property
    def consumer_tags(self) -> list[str]:
        """The tags of all consumers."""
        return list(self._subscriptions)

    def consumes(self, queue: str) -> bool:
        """Whether there is a consumer on the queue."""
        return any(each.queue == queue for each in list(self._subscriptions.values()))

    def subscribe(self, consumer_tag: str, subscription: Subscription) -> None:
        """Add a consumer."""
        self._subscriptions[consumer_tag] = subscription

    def unsubscribe(self, consumer_tag: str) -> str | None:
        """Remove a consumer. Returns its queue if nobody here consumes from that any more."""
        subscription = self._subscriptions.pop(consumer_tag, None)
        if subscription is None or self.consumes(subscription.queue):
            return None
        return subscription.queue

    def orders(self, room: int | None) -> list[Order]:
        """What to take for these consumers, up to ``room`` messages, beginning with another queue each time."""
        limit = _BATCH if room is None else min(room, _BATCH)
        self._turn += 1
        orders = []
        for no_ack in (True, False):
            queues = list(dict.fromkeys(s.queue for s in self._subscriptions.values() if s.no_ack is no_ack))
            if queues and limit > 0:
                first = self._turn % len(queues)
                orders.append(Order((*queues[first:], *queues[:first]), limit, no_ack))
        return orders

    def append(self, arrival: Arrival) -> None:
        """Line up a message."""
        self._arrivals.append(arrival)

    def hand_over(self) -> bool:
        """Call back the consumer whose message is next, or one of them. Returns whether there was one."""
        while self._arrivals:
            arrival = self._arrivals.popleft()
            consumers = [each for each in self._subscriptions.values() if each.queue == arrival.taken.queue]
            if consumers:
                self._turn += 1
                consumers[self._turn % len(consumers)].callback(arrival.message)
                return True
        return False

    def withdraw(self, queue: str | None = None) -> list[Arrival]:
        """Take back what waits here, from one queue or from all."""
        withdrawn = [each for each in self._arrivals if queue in (None, each.taken.queue)]
        self._arrivals = deque(each for each in self._arrivals if queue not in (None, each.taken.queue))
        return withdrawn
