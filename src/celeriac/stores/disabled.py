"""The store of an app without a result backend: it records nothing, so it knows no task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from celeriac.stores.base import CancellationFeed, Store, Watch
from celeriac.stores.records import EventDraft, RecordFilter, RecordPage, TaskEvent, TaskRecord, Transition

__all__ = ["DisabledStore"]


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
