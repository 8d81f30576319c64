"""The store port: records, transitions, events, waiters and cancel marks. A store never knows what a broker is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from celeriac.errors import StoreUnavailable
from celeriac.stores.records import EventDraft, RecordFilter, RecordPage, TaskEvent, TaskRecord, Transition

__all__ = ["Store", "Watch", "not_open"]


class Watch(ABC):
    """A flag that a store raises when something about one task may have changed.

    A flag holds no events, so a slow reader costs no memory and misses nothing: it reads the store again.
    """

    @abstractmethod
    async def changed(self) -> None:
        """Wait until the flag is up, and lower it. The flag starts lowered; changes since the watch began raise it."""


class Store(ABC):
    """Keeps the truth about every task.

    A store belongs to the event loop that opened it. Every method may raise
    :exc:`celeriac.errors.StoreUnavailable`, and none lets a driver's own exception out.
    """

    #: Whether anything is recorded; nobody need prepare what a store would throw away.
    records: bool = True

    #: Seconds that a finished task's record and events are kept; ``None`` keeps them for ever.
    expires: float | None = 86_400.0

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create what is missing. Safe to call twice."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything."""

    @abstractmethod
    async def transition(self, transitions: Sequence[Transition]) -> None:
        """Apply transitions in order, as :class:`Transition` says. All of one call, or none."""

    @abstractmethod
    async def append_events(self, events: Sequence[EventDraft]) -> None:
        """Append events in order, and wake who watches their tasks."""

    @abstractmethod
    async def get(self, task_ids: Sequence[str]) -> Mapping[str, TaskRecord]:
        """The records of these ids; an id without a record is missing from the answer."""

    @abstractmethod
    async def list(self, where: RecordFilter, cursor: str | None = None, limit: int = 50) -> RecordPage:
        """Records, newest first. Raises ValueError for a cursor that this store did not make."""

    @abstractmethod
    async def events(self, task_id: str, after: str | None = None, limit: int = 1000) -> Sequence[TaskEvent]:
        """The task's events in order, those after ``after`` alone. Raises ValueError for an id that is no event id."""

    @abstractmethod
    def watch(self, task_id: str, *, until_ready: bool = False) -> AbstractAsyncContextManager[Watch]:
        """Watch one task.

        With ``until_ready`` only its end raises the flag (a ready state, or that the record is forgotten), so that a
        waiter sleeps through the rest.
        """

    @abstractmethod
    async def request_cancel(self, task_ids: Sequence[str]) -> Collection[str]:
        """Mark these tasks as cancelled, durably. Returns the ids that the mark was set on (known, and not ready yet).

        A task that has not started (``PENDING``, ``RETRY``) becomes ``REVOKED`` in the same step. A mark holds until
        the record ends or is replayed; every ``cancellations`` of every process hears of it. Marking twice is harmless.
        """

    @abstractmethod
    async def cancelled(self, task_ids: Sequence[str]) -> Collection[str]:
        """Which of these are marked as cancelled or already ``REVOKED``."""

    @abstractmethod
    def cancellations(self) -> AbstractAsyncContextManager[CancellationFeed]:
        """Hear of tasks that anyone cancels from now on."""

    @abstractmethod
    async def forget(self, task_ids: Sequence[str]) -> int:
        """Delete records and their events. Returns how many records there were."""

    @abstractmethod
    async def trim(self) -> int:
        """Delete what is older than ``expires``. Returns how many records went."""


class CancellationFeed(ABC):
    """The ids of tasks that were cancelled while somebody listened."""

    @abstractmethod
    async def next(self) -> Collection[str]:
        """Wait for cancelled task ids, and take them."""


def not_open(store: str) -> StoreUnavailable:
    """The error of a store that is not open, or not any more: waiting for it is no use."""
    error = StoreUnavailable(f"The store {store} is not open.")
    error.permanent = True
    return error
