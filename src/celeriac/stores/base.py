"""The store port: records, transitions, events, waiters and cancel marks. A store never knows what a broker is."""

from __future__ import annotations

import asyncio
import builtins
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from celeriac.errors import StoreUnavailable
from celeriac.stores.chords import CLAIM, ChordClaim, ChordPart
from celeriac.stores.keys import KeyClaim
from celeriac.stores.records import (
    EventDraft,
    Gone,
    RecordFilter,
    RecordPage,
    TaskEvent,
    TaskRecord,
    Transition,
)

__all__ = ["Store", "Watch", "not_open"]

#: Seconds between two looks at a chord that somebody else has claimed.
_PAUSE = 0.25


class Watch(ABC):
    """A flag that a store raises when something about one task may have changed.

    A flag holds no events, so a slow reader costs no memory and misses nothing: it reads the store again.
    """

    @abstractmethod
    async def changed(self) -> None:
        """Wait until the flag is up, and lower it. The flag starts lowered; changes since the watch began raise it.

        Cancelled, it leaves the flag as it is.
        """


class Store(ABC):
    """Keeps the truth about every task.

    A store belongs to the event loop that opened it. Every method may raise
    :exc:`celeriac.errors.StoreUnavailable`, and none lets a driver's own exception out.
    """

    #: Whether anything is recorded; nobody need prepare what a store would throw away.
    records: bool = True

    #: Seconds that a finished task's record and events are kept; ``None`` keeps them for ever.
    expires: float | None = 86_400.0

    #: Seconds that what is known of a chord is kept after it last changed: ``result_chord_expires``. Zero keeps it for
    #: ever; ``None`` keeps it as long as records.
    chord_expires: float | None = None

    #: Seconds that a claim of a chord holds: :func:`celeriac.stores.chords.claim_seconds`.
    chord_claim: float = CLAIM

    @property
    def chords_kept(self) -> float | None:
        """Seconds that what is known of a chord is kept, or ``None`` for ever."""
        return self.expires if self.chord_expires is None else self.chord_expires or None

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
        """Which of these are marked as cancelled or already ``REVOKED``, or were when their records went.

        A revoked task's message may still wait, and must not run. So that is remembered for 30 days after its record
        has been deleted, unless a task is started anew under its id.
        """

    @abstractmethod
    def cancellations(self) -> AbstractAsyncContextManager[CancellationFeed]:
        """Hear of tasks that anyone cancels from now on."""

    @abstractmethod
    async def forget(self, task_ids: Sequence[str]) -> int:
        """Delete records and their events. Returns how many records there were.

        No trace of them stays, but for what :meth:`cancelled` says of those that were revoked.
        """

    @abstractmethod
    async def trim(self) -> int:
        """Delete what is older than ``expires``, and what else has expired. Returns how many records went.

        That these records have expired is remembered for as long again: see :meth:`gone`.
        """

    @abstractmethod
    async def gone(self, task_ids: Sequence[str]) -> Mapping[str, Gone]:
        """What is remembered of those of these tasks whose records have expired.

        A task that has a record (it was started anew under its id), or was forgotten, is missing from the answer.
        """

    @abstractmethod
    async def claim_key(self, key: str, fingerprint: str, task_id: str, *, expires: float) -> KeyClaim:
        """Take a key for a task and so many seconds, unless somebody has it; whose it is now.

        Of many who claim a key at once, in any processes, exactly one gets a claim that is new. Whoever claims it
        again for the same task and fingerprint, because an answer was lost, gets a new claim again; the time is not
        prolonged. Raises :exc:`celeriac.errors.ConfigurationError` where nothing is recorded.
        """

    @abstractmethod
    async def release_key(self, key: str, task_id: str) -> None:
        """Free a key that is still this task's: the task could not be published."""

    @abstractmethod
    async def set_chord_size(self, group_id: str, size: int) -> None:
        """Say how many parts the chord of this group has: a new run of it, which is not done.

        Parts that have been added before count, and so does :meth:`extend_chord`. Say it before the last part is
        published: saying it claims nothing. Raises :exc:`celeriac.errors.ConfigurationError` where nothing is recorded.
        """

    @abstractmethod
    async def save_chord_header(self, group_id: str, header: str) -> None:
        """Keep the structure of the header, JSON of ``GroupResult.as_tuple()``: ``GroupResult.restore`` reads it, too.

        Only wanted where results are nested. Raises as :meth:`set_chord_size` does.
        """

    @abstractmethod
    async def extend_chord(self, group_id: str, by: int = 1, token: str | None = None) -> None:
        """So many parts more, before the chord is complete: ``Task.add_to_chord``. Raises as :meth:`set_chord_size`.

        ``token`` is for a caller who tries again: a store that may have carried out what it did not confirm counts the
        same one once.
        """

    @abstractmethod
    async def add_chord_parts(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        """Add parts that are done, and claim the chords that this completes.

        A part counts once, by its task and index; parts of a chord that is done count no more. There is a claim for
        each chord that is complete and that nobody else has claimed: whoever gets it calls the body, or fails it, and
        then calls :meth:`finish_chord`. A claim expires after ``chord_claim`` seconds, so that the last part, when it
        is delivered again because its worker died before the body was published, claims the chord again.
        """

    async def add_chord_parts_again(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        """Like :meth:`add_chord_parts`, for parts that were delivered again: they may be the last chance of a chord.

        Where somebody has claimed the chord, and may have died since, this waits until it is done or the claim expires.
        """
        while not (claims := await self.add_chord_parts(parts)):
            if not await self.claimed_chords([part.group_id for part in parts]):
                break
            await asyncio.sleep(_PAUSE)
        return claims

    @abstractmethod
    async def claimed_chords(self, group_ids: Sequence[str]) -> Collection[str]:
        """Which of these chords are complete, and claimed by somebody who has not finished yet.

        For a part that was delivered again, and whose adding has claimed nothing: while its chord is among these, the
        claimant may have died, and nobody else may be left to claim it.
        """

    @abstractmethod
    async def finish_chord(self, claim: ChordClaim) -> bool:
        """Forget the parts, and remember for a while that the chord is done: its body was published, or failed.

        Returns False when the claim had expired and somebody else has claimed or finished the chord since.
        """


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
