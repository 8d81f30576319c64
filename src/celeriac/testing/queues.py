"""Queues and records in memory that tell a test what goes through them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from celery import states

from celeriac.brokers.memory_queues import MemoryQueues
from celeriac.protocol.envelope import decode
from celeriac.sql.messages import Draft, Ending
from celeriac.sql.tables import DEAD, DELAYED, LEASED
from celeriac.stores.memory_records import MemoryRecords
from celeriac.stores.records import Transition
from celeriac.timing import Now

__all__ = ["ObservedQueues", "ObservedRecords", "Seen"]


class Seen(NamedTuple):
    """A message that went into a queue, and when, in seconds since the epoch."""

    draft: Draft
    at: float


class ObservedQueues(MemoryQueues):
    """Queues that remember each message of a task, and say what is yet to be done."""

    def __init__(self, now: Now) -> None:
        super().__init__()
        self.now = now
        #: Whether attempts after the first wait for nothing.
        self.retries_at_once = False
        self.seen: list[Seen] = []
        #: The queues that any task was ever sent to.
        self.names: dict[str, None] = {}

    def insert(self, drafts: Iterable[Draft]) -> None:
        drafts = [self._retimed(draft) for draft in drafts]
        with self._lock:
            for draft in drafts:
                if draft.task:  # remote control and events pass here as well
                    self.seen.append(Seen(draft, self.now()))
                    self.names[draft.queue] = None
            super().insert(drafts)

    def _retimed(self, draft: Draft) -> Draft:
        if self.retries_at_once and draft.due is not None and decode(draft.envelope).headers.get("retries"):
            return draft._replace(due=None)
        return draft

    def settle(
        self, endings: Sequence[Ending], drafts: Mapping[str, Iterable[Draft]] = MappingProxyType({})
    ) -> set[str]:
        void = super().settle(endings, drafts)
        self._tell()
        return void

    def wake(self) -> None:
        """The time has changed: whoever waits looks again."""
        self._tell()

    def unfinished(self) -> list[Draft]:
        """What runs, or is due and waits for a worker."""
        now = self.now()
        with self._lock:
            return [
                message.draft
                for message in self._messages.values()
                if message.draft.task
                and message.state != DEAD
                and not (message.state == DELAYED and (message.due or 0.0) > now)
            ]

    def running(self) -> list[Draft]:
        """What a worker has in hand."""
        with self._lock:
            return [
                message.draft
                for message in self._messages.values()
                if message.draft.task and message.state == LEASED
            ]

    def delayed_tasks(self) -> list[tuple[float, Draft]]:
        """What waits for its time, and when that is; the earliest first."""
        with self._lock:
            found = [
                (message.due, message.draft)
                for message in self._messages.values()
                if message.draft.task and message.state == DELAYED and message.due is not None
            ]
        return sorted(found, key=lambda entry: entry[0])


class ObservedRecords(MemoryRecords):
    """Records that tell of each failure."""

    def __init__(self, now: Now) -> None:
        super().__init__()
        self.now = now
        self.on_failure: Callable[[Transition], None] = _nothing

    def apply(self, transitions: Iterable[Transition]) -> None:
        transitions = list(transitions)
        super().apply(transitions)
        for step in transitions:
            if step.state == states.FAILURE:
                self.on_failure(step)

    def owners(self, ids: Collection[str]) -> dict[str, str | None]:
        """Whose tasks these are."""
        return {row.task_id: row.owner for row in self.fetch(ids)}


def _nothing(_step: Transition) -> None:
    return None
