"""What our kombu transports have in common: connections, the wait for messages, and leases.

kombu's own virtual transports sleep between polls of every queue. Here a look at one number says whether anything
has changed at all, so that waiting costs next to nothing and still ends within milliseconds.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Hashable
from typing import Any

from kombu.transport import virtual

from celeriac.errors import BrokerUnavailable
from celeriac.sql import forks
from celeriac.transports.channel import Channel
from celeriac.transports.leases import LeaseKeeper
from celeriac.transports.storage import Storage

__all__ = ["Transport"]

_LEASE = 30.0
_DELIVERY_LIMIT = 5
_POLLING_INTERVAL = 0.01

#: Seconds after which a look is due although nothing has changed: when the machine's clock is set, due times move.
_LONGEST_REST = 60.0

_Transport: Any = virtual.Transport  # whose annotations are only partly there

_transports: weakref.WeakSet[Transport] = weakref.WeakSet()


class _Bell:
    """An event for one waiting thread. Each wait ends it, and costs half of what threading's Event costs."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """End the wait, or the next one."""
        with contextlib.suppress(RuntimeError):  # somebody else has just rung it
            self._silence.release()

    def wait(self, timeout: float) -> None:
        """Wait for it to ring, up to ``timeout`` seconds."""
        self._silence.acquire(timeout=timeout)


class Transport(_Transport):  # type: ignore[misc]
    """One kombu connection to a storage of ours."""

    Channel = Channel

    connection_errors = (BrokerUnavailable, *_Transport.connection_errors)
    channel_errors = _Transport.channel_errors
    recoverable_connection_errors = connection_errors
    recoverable_channel_errors = channel_errors

    implements = _Transport.implements.extend(
        asynchronous=False,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        options = client.transport_options
        self.lease = float(options.get("visibility_timeout") or _LEASE)
        self.delivery_limit = int(options.get("delivery_limit") or _DELIVERY_LIMIT)
        self.polling_interval = float(options.get("polling_interval") or _POLLING_INTERVAL)
        self._storage: Storage | None = None
        self._keeper: LeaseKeeper | None = None
        self._bell = _Bell()
        self._version: Hashable = None
        self._looked_at = 0.0
        self._turn = 0
        _transports.add(self)

    @abstractmethod
    def open_storage(self) -> Storage:
        """The storage of this connection's URL, opened. Raises BrokerUnavailable."""

    @property
    def storage(self) -> Storage:
        """Where the messages are, opened at first use."""
        if self._storage is None:
            self._storage = self.open_storage()
        return self._storage

    # Connections

    def establish_connection(self) -> Any:
        """Open the storage, which is all there is to connect to."""
        self.storage.version()
        return super().establish_connection()

    def verify_connection(self, connection: Any) -> bool:
        """Whether the connection can be used: not one that has been closed, or that a fork took away."""
        return self._storage is not None

    def close_connection(self, connection: Any) -> None:
        """Hand back what is not settled, and let go of the storage."""
        super().close_connection(connection)
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
        storage, self._storage = self._storage, None
        if storage is not None:
            storage.close()

    def forget(self) -> None:
        """Be as new: in a forked child, where connection, threads and leases are the parent's."""
        for channel in self.channels:
            channel.forget()
        self._bell = _Bell()
        self._keeper = None
        self._storage = None

    # Waiting for messages

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message, waiting for it up to ``timeout`` seconds. Raises TimeoutError when there was none."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._fetch()
            if self._deliver_next():
                return
            wait: float = self.polling_interval
            if deadline is not None:
                wait = min(wait, deadline - time.monotonic())
                if wait <= 0:
                    raise socket.timeout("timed out")  # noqa: UP041 - kombu's name of it
            self._bell.wait(wait)

    def wake(self) -> None:
        """Look again now: a settled delivery may have made room for the next."""
        self._bell.ring()

    def _fetch(self) -> None:
        now = time.time()
        version = self.storage.version()
        if version != self._version:
            self._version = version
            for channel in self.channels:
                channel.look_at = 0.0
        hungry = [channel for channel in self.channels if channel.wants(now)]
        if not hungry or not self._may_look():
            return
        orders = [(channel, order) for channel in hungry for order in channel.orders()]
        look = self.storage.look(list(dict.fromkeys(queue for _, order in orders for queue in order.queues)))
        for channel in hungry:
            channel.look_at = min(look.next_due or float("inf"), now + _LONGEST_REST)
        if not look.found:
            return
        taken = self.storage.take([order for _, order in orders], self.lease)
        for (channel, order), deliveries in zip(orders, taken, strict=True):
            if len(deliveries) == order.limit:
                channel.look_at = 0.0
            channel.accept(deliveries, order.no_ack)

    def _may_look(self) -> bool:
        # While one channel is being served, a look for the others at the pace of an idle one is soon enough.
        monotonic = time.monotonic()
        if self._has_arrivals() and monotonic - self._looked_at < self.polling_interval:
            return False
        self._looked_at = monotonic
        return True

    def _has_arrivals(self) -> bool:
        return any(channel.inbox.has_arrivals for channel in self.channels)

    def _deliver_next(self) -> bool:
        # One each in turn: a full task queue must not keep a remote control command waiting.
        channels = list(self.channels)
        self._turn += 1
        for position in range(len(channels)):
            if channels[(self._turn + position) % len(channels)].inbox.hand_over():
                return True
        return False

    # Leases

    def keeper_starts(self) -> None:
        """Have a thread renew what is leased, from now on."""
        if self._keeper is None:
            self._keeper = LeaseKeeper(self)

    def keeper_reconsiders(self) -> None:
        """A queue was declared or consumed: it may expire unless it is kept, sooner than leases end."""
        if any(channel.kept()[1] for channel in self.channels):
            self.keeper_starts()
        if self._keeper is not None:
            self._keeper.reconsider()

    def keep(self) -> None:
        """Renew the leases and the queues of all channels."""
        kept = [(channel, *channel.kept()) for channel in list(self.channels)]
        tags = [tag for _, tags, _ in kept for tag in tags]
        queues = [declaration for _, _, declarations in kept for declaration in declarations]
        storage = self._storage
        if storage is None or not (tags or queues):
            return
        void = storage.keep(tags, self.lease, queues)
        if void:
            for channel, _, _ in kept:
                channel.lose(void)

    def keep_interval(self) -> float:
        """Seconds between two renewals, so short that one may fail."""
        lives: list[float | None] = [channel.shortest_life() for channel in list(self.channels)]
        return min([self.lease, *(life for life in lives if life is not None)]) / 3.0


def _forget_all() -> None:
    for transport in list(_transports):
        transport.forget()


forks.run_in_child(_forget_all)
