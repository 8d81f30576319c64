"""Deliveries that a channel's consumers have not settled yet, and the thread that keeps them theirs."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Collection
from typing import Any, Protocol

from kombu.log import get_logger

from celeriac.errors import BrokerError

__all__ = ["LeaseKeeper", "QoS"]

logger = get_logger(__name__)


class QoS:
    """What one channel has delivered, by tag, in the order of delivery. Tags are settled by any thread.

    kombu's name for it: with ``prefetch_count`` it also decides whether the channel may take more.
    """

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        self.prefetch_count = prefetch_count or 0
        self._channel = weakref.proxy(channel)
        self._delivered: dict[str, Any] = {}
        self._lost: set[str] = set()
        self._lock = threading.Lock()

    def can_consume(self) -> bool:
        """Whether one more message may be delivered."""
        return not self.prefetch_count or len(self._delivered) < self.prefetch_count

    def can_consume_max_estimate(self) -> int | None:
        """How many more messages may be delivered; None means any number."""
        if not self.prefetch_count:
            return None
        return max(self.prefetch_count - len(self._delivered), 0)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a delivery."""
        with self._lock:
            self._delivered[delivery_tag] = message

    def get(self, delivery_tag: str) -> Any:
        """The message of a tag. Raises KeyError."""
        return self._delivered[delivery_tag]

    def release(self, delivery_tag: str, multiple: bool = False) -> list[str]:
        """Forget a delivery, with ``multiple`` also those before it. Returns the tags, none for one not known."""
        with self._lock:
            if delivery_tag not in self._delivered:
                return []
            tags = list(self._delivered)
            tags = tags[: tags.index(delivery_tag) + 1] if multiple else [delivery_tag]
            for tag in tags:
                del self._delivered[tag]
            self._lost.difference_update(tags)
            return tags

    def release_all(self) -> list[str]:
        """Forget everything. Returns the tags."""
        with self._lock:
            tags = [tag for tag in self._delivered if tag not in self._lost]
            self._delivered.clear()
            self._lost.clear()
            return tags

    def leased(self) -> list[str]:
        """The tags whose leases are still this channel's."""
        with self._lock:
            return [tag for tag in self._delivered if tag not in self._lost]

    def lose(self, tags: Collection[str]) -> list[str]:
        """Note that others have these messages now. Returns which of them were this channel's."""
        with self._lock:
            lost = [tag for tag in tags if tag in self._delivered]
            self._lost.update(lost)
            return lost

    def restore_unacked(self) -> None:
        """Put back everything that was delivered and not settled."""
        self._channel.hand_back()


class Kept(Protocol):
    """Something with leases and queues to keep."""

    def keep(self) -> None:
        """Renew them."""

    def keep_interval(self) -> float:
        """Seconds until they want to be renewed again."""


class LeaseKeeper:
    """A daemon thread that renews what a transport holds, until either is gone, or the process dies.

    A message that a prefork child works on for an hour stays its own; one whose worker was killed is free when its
    lease ends.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = weakref.ref(kept)
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._main, name="celeriac-lease-keeper", daemon=True)
        self._thread.start()

    def reconsider(self) -> None:
        """The interval may have become shorter."""
        self._hurry.set()

    def stop(self) -> None:
        """End the thread, and wait for it unless it is this one."""
        self._stopping.set()
        self._hurry.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _main(self) -> None:
        failing = False
        kept_at = time.monotonic()
        while not self._stopping.is_set():
            kept = self._kept()
            if kept is None:
                return
            due = kept_at + kept.keep_interval()
            del kept
            if self._hurry.wait(max(due - time.monotonic(), 0.0)):
                self._hurry.clear()
                continue
            failing = self._keep(failing)
            kept_at = time.monotonic()

    def _keep(self, failing: bool) -> bool:
        kept = self._kept()
        if kept is None:
            return False
        try:
            kept.keep()
        except BrokerError as exc:
            if not failing:
                logger.warning("Leases cannot be renewed: %s", exc)
            return True
        if failing:
            logger.info("Leases are being renewed again.")
        return False
