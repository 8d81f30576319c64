"""What a worker does beside its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.errors import StoreUnavailable
from celeriac.stores.base import CancellationFeed
from celeriac.stores.memory import MemoryStore
from celeriac.stores.records import Transition
from celeriac.worker.background import follow_cancellations
from celeriac.worker.held import Held


class LateStore(MemoryStore):
    """A store whose feed begins late: at each attempt a task is cancelled just before, and the first attempts fail."""

    def __init__(self, *fates: BaseException | None) -> None:
        super().__init__("late")
        self._fates = [*fates]

    @asynccontextmanager
    async def cancellations(self) -> AsyncIterator[CancellationFeed]:
        await self.request_cancel(["t1"])
        if self._fates and (fate := self._fates.pop(0)) is not None:
            raise fate
        async with super().cancellations() as feed:
            yield feed


@pytest.mark.parametrize("fates", [(), (StoreUnavailable("away"),)], ids=["at the start", "after an outage"])
async def test_what_is_cancelled_just_before_the_worker_listens_is_stopped(
    fates: tuple[BaseException, ...],
) -> None:
    store, held = LateStore(*fates), Held()
    await store.open()
    await store.transition([Transition(task_id="t1", state="STARTED", at=1.0, worker="w")])
    halted: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    running: Any = SimpleNamespace(
        id="t1",
        delivery=SimpleNamespace(tag="1"),
        halt=lambda reason: halted.done() or halted.set_result(reason),
    )
    held.add(running)
    following = asyncio.create_task(follow_cancellations(store, held))
    async with asyncio.timeout(10):
        assert str(await halted) == "cancelled"
    following.cancel()
    await store.close()
