"""The store of an app without a result backend: it records nothing, so it knows no task."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from celeriac.errors import ConfigurationError
from celeriac.stores.base import CancellationFeed, Store, Watch
from celeriac.stores.chords import ChordClaim, ChordPart
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

__all__ = ["DisabledStore"]

logger = logging.getLogger("celeriac.stores")


class _Silence(Watch, CancellationFeed):
    async def changed(self) -> None:
        await asyncio.Event().wait()

    async def next(self) -> Collection[str]:
        await asyncio.Event().wait()
        return ()


class DisabledStore(Store):
    """Records nothing."""

    records = False
    expires = None

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def transition(self, transitions: Sequence[Transition]) -> None:
        pass

    async def append_events(self, events: Sequence[EventDraft]) -> None:
        pass

    async def get(self, task_ids: Sequence[str]) -> Mapping[str, TaskRecord]:
        return {}

    async def list(self, where: RecordFilter, cursor: str | None = None, limit: int = 50) -> RecordPage:
        return RecordPage()

    async def events(self, task_id: str, after: str | None = None, limit: int = 1000) -> Sequence[TaskEvent]:
        return []

    @asynccontextmanager
    async def watch(self, task_id: str, *, until_ready: bool = False) -> AsyncIterator[Watch]:
        yield _Silence()

    async def request_cancel(self, task_ids: Sequence[str]) -> Collection[str]:
        return ()

    async def cancelled(self, task_ids: Sequence[str]) -> Collection[str]:
        return ()

    @asynccontextmanager
    async def cancellations(self) -> AsyncIterator[CancellationFeed]:
        yield _Silence()

    async def forget(self, task_ids: Sequence[str]) -> int:
        return 0

    async def trim(self) -> int:
        return 0

    async def gone(self, task_ids: Sequence[str]) -> Mapping[str, Gone]:
        return {}

    async def claim_key(self, key: str, fingerprint: str, task_id: str, *, expires: float) -> KeyClaim:
        raise ConfigurationError(
            "An idempotency key needs a result backend, which remembers it. "
            "Set result_backend, for instance to sqlite:///celery.db."
        )

    async def release_key(self, key: str, task_id: str) -> None:
        pass

    async def set_chord_size(self, group_id: str, size: int) -> None:
        raise _chords_need_a_backend()

    async def save_chord_header(self, group_id: str, header: str) -> None:
        raise _chords_need_a_backend()

    async def extend_chord(self, group_id: str, by: int = 1, token: str | None = None) -> None:
        raise _chords_need_a_backend()

    async def add_chord_parts(self, parts: Sequence[ChordPart]) -> builtins.list[ChordClaim]:
        # Whoever has started the chord has a result backend; the part itself has done its work.
        for group_id in {part.group_id for part in parts}:
            logger.warning(
                "A part of chord %s was done here, but is not counted: set result_backend, as where it was called.",
                group_id,
            )
        return []

    async def claimed_chords(self, group_ids: Sequence[str]) -> Collection[str]:
        return ()

    async def finish_chord(self, claim: ChordClaim) -> bool:
        return False


def _chords_need_a_backend() -> ConfigurationError:
    # As Celery's DisabledBackend.ensure_chords_allowed refuses.
    return ConfigurationError(
        "A chord needs a result backend. Set result_backend, for instance to sqlite:///celery.db."
    )
