"""Who waits is woken, and nobody else."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack

import pytest

from celeriac.errors import StoreUnavailable
from celeriac.stores.base import Store, Watch
from celeriac.stores.records import EventDraft
from celeriac.testing.contract.store_fixtures import NOW, NewStore, StoreFixtures, only, step, steps

__all__ = ["WatchingCases"]

_SOON = 5.0  # seconds: much longer than a wake-up takes, so that a busy machine fails no test
_QUIET = 0.08  # seconds in which a flag that is not meant to rise would have risen


async def _rises(watch: Watch) -> None:
    await asyncio.wait_for(watch.changed(), _SOON)


async def _stays_down(watch: Watch) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.changed(), _QUIET)


class WatchingCases(StoreFixtures):
    async def test_a_change_raises_the_flag(self, store: Store, other_store: Store) -> None:
        async with store.watch("a") as watch:
            for transition in steps("a", "PENDING", "STARTED", "SUCCESS"):
                await other_store.transition([transition])
                await _rises(watch)
            await _stays_down(watch)

    async def test_the_flag_starts_lowered(self, store: Store) -> None:
        await store.transition(steps("a", "PENDING", "STARTED"))
        async with store.watch("a") as watch:
            await _stays_down(watch)

    async def test_a_cancelled_wait_loses_nothing(self, store: Store) -> None:
        await store.transition(steps("a", "PENDING"))
        async with store.watch("a") as watch:
            for ticks in range(20):
                waiting = asyncio.ensure_future(watch.changed())
                await store.append_events([EventDraft("a", "value", "1", NOW)])
                for _ in range(ticks):
                    await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                if waiting.cancelled():
                    await _rises(watch)

    async def test_other_tasks_do_not_raise_it(self, store: Store) -> None:
        async with store.watch("a") as watch:
            await store.transition(steps("b", "PENDING", "SUCCESS"))
            await store.append_events([EventDraft("b", "value", "1", NOW)])
            await _stays_down(watch)

    async def test_events_raise_it(self, store: Store, other_store: Store) -> None:
        await store.transition(steps("a", "PENDING"))
        async with store.watch("a") as watch:
            await other_store.append_events([EventDraft("a", "value", "1", NOW)])
            await _rises(watch)

    async def test_until_ready_sleeps_through_the_rest(self, store: Store, other_store: Store) -> None:
        async with store.watch("a", until_ready=True) as watch:
            await other_store.transition(steps("a", "PENDING", "STARTED", "RETRY"))
            await other_store.append_events([EventDraft("a", "value", "1", NOW)])
            await _stays_down(watch)
            await other_store.transition([step("a", "FAILURE", 9)])
            await _rises(watch)

    async def test_what_does_not_apply_wakes_nobody(self, store: Store) -> None:
        await store.transition(steps("a", "PENDING", "SUCCESS"))
        async with store.watch("a") as watch:
            await store.transition(steps("a", "STARTED", "FAILURE"))
            await _stays_down(watch)

    async def test_being_forgotten_is_an_end(self, store: Store, other_store: Store) -> None:
        await store.transition(steps("a", "PENDING"))
        async with store.watch("a", until_ready=True) as watch:
            await other_store.forget(["a"])
            await _rises(watch)

    async def test_no_wake_up_is_lost_between_watching_and_reading(
        self, store: Store, other_store: Store
    ) -> None:
        for number in range(40):
            task_id = f"task-{number}"
            change = asyncio.ensure_future(other_store.transition([step(task_id, "SUCCESS", result="1")]))
            async with store.watch(task_id, until_ready=True) as watch:
                if task_id not in await store.get([task_id]):
                    await _rises(watch)
                    assert (await only(store, task_id)).ready
            await change

    async def test_many_watch_one_task_and_many_tasks_are_watched(
        self, store: Store, other_store: Store
    ) -> None:
        ids = [f"task-{number}" for number in range(400)]
        async with AsyncExitStack() as stack:
            watches = await asyncio.gather(
                *(stack.enter_async_context(store.watch(id_, until_ready=True)) for id_ in [*ids, *ids])
            )
            await other_store.transition([step(id_, "SUCCESS") for id_ in ids])
            await asyncio.gather(*map(_rises, watches))

    async def test_a_watch_that_has_ended_is_gone(self, store: Store) -> None:
        async with store.watch("a"):
            pass
        async with store.watch("a") as second:
            await store.transition(steps("a", "PENDING"))
            await _rises(second)
        await store.transition([step("a", "STARTED", 1)])
        gc.collect()

    async def test_closing_wakes_who_still_waits(self, new_store: NewStore) -> None:
        store = new_store(None)
        await store.open()
        async with store.watch("a", until_ready=True) as watch:
            await store.close()
            await _rises(watch)
            with pytest.raises(StoreUnavailable):
                await store.get(["a"])

    async def test_opening_twice_is_opening_once(self, new_store: NewStore) -> None:
        store = new_store(None)
        await store.open()
        await store.open()
        await store.transition(steps("a", "PENDING"))
        await store.close()
        with pytest.raises(StoreUnavailable):
            await store.transition(steps("b", "PENDING"))
