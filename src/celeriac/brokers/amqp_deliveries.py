"""What the server has pushed over its consumers, and the frames that end it. Nothing here does I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from aiormq.abc import DeliveredMessage
from pamqp import commands as spec

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel
    from pamqp.base import Frame

    from celeriac.brokers.amqp_publishing import Outgoing
    from celeriac.brokers.base import Settlement

__all__ = ["Arrival", "Consumer", "Share", "acknowledged", "discarded", "merged", "requeued"]


class Arrival:
    """A message that the server has handed over: ``tag`` is ours, ``number`` the server's on its channel."""

    __slots__ = ("consumer", "delivered", "left", "number", "share", "tag", "taken")

    def __init__(self, tag: str, consumer: Consumer, share: Share, delivered: DeliveredMessage) -> None:
        self.tag, self.consumer, self.share, self.delivered = tag, consumer, share, delivered
        self.number = delivered.delivery_tag or 0
        self.taken = False
        #: Its settlement, what that has yet to publish, and the frame that ends it.
        self.left: tuple[Settlement, list[Outgoing], Frame] | None = None

    @property
    def queue(self) -> str:
        """The queue that it came from."""
        return self.consumer.queue


class Share:
    """One of the server's consumers for a queue: it pushes up to ``prefetch`` messages that nobody has settled."""

    __slots__ = ("held", "prefetch")

    def __init__(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self.held = 0


class Consumer:
    """One queue's channel and buffer.

    A prefetch cannot be changed while its consumer lives, so more is asked for by one consumer more: what is held
    keeps counting, and the server never pushes more than was asked for.
    """

    def __init__(self, queue: str, channel: AbstractChannel) -> None:
        self.queue = queue
        self.channel = channel
        self.shares: dict[str, Share] = {}
        self.ready: deque[Arrival] = deque()
        self.unsettled: set[int] = set()  # the server's numbers of what it has pushed
        self.started = 0  # of those that were taken, how many are not settled
        self.most = 0  # that were ever wanted at once

    @property
    def prefetch(self) -> int:
        """How many messages the server may have pushed."""
        return sum(share.prefetch for share in self.shares.values())

    @property
    def room(self) -> int:
        """How many messages can be taken, now or once the server has pushed them."""
        return len(self.ready) + sum(share.prefetch - share.held for share in self.shares.values())


def merged(ended: Mapping[int, Frame], unsettled: Collection[int]) -> list[Frame]:
    """The frames that end messages of one channel.

    Those before all others are acknowledged by one: a quorum queue writes each frame into its log.
    """
    others = [number for number, frame in ended.items() if not isinstance(frame, spec.Basic.Ack)]
    until = min(min(unsettled, default=math.inf), min(others, default=math.inf))
    first = [number for number in ended if number < until]
    frames = [frame for number, frame in ended.items() if number >= until]
    return [spec.Basic.Ack(delivery_tag=max(first), multiple=True), *frames] if first else frames


def acknowledged(number: int) -> Frame:
    """The frame that ends a message."""
    return spec.Basic.Ack(delivery_tag=number)


def requeued(number: int) -> Frame:
    """The frame that puts a message back where it was."""
    return spec.Basic.Nack(delivery_tag=number, requeue=True)


def discarded(number: int) -> Frame:
    """The frame that gives a message up: to the queue's own dead-letter exchange, if it has one."""
    return spec.Basic.Reject(delivery_tag=number, requeue=False)
