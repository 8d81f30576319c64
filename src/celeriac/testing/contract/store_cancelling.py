"""Cancel marks, and who hears of them."""

from __future__ import annotations

import asyncio

import pytest

from celeriac.stores.base import CancellationFeed, Store
from celeriac.testing.contract.store_fixtures import StoreFixtures, only, step, steps

__all__ = ["CancellingCases"]

_SOON = 5.0  # seconds
_QUIET = 0.08  # seconds
_TWO_DAYS = 172_800.0


async def _hear(feed: CancellationFeed) -> set[str]:
    return set(await asyncio.wait_for(feed.next(), _SOON))


class CancellingCases(StoreFixtures):
    @pytest.mark.parametrize("waiting", [["PENDING"], ["PENDING", "STARTED", "RETRY"]])
    async def test_a_waiting_task_is_revoked(self, store: Store, waiting: list[str]) -> None:
        await store.transition(steps("a", *waiting))
        assert set(await store.request_cancel(["a"])) == {"a"}
        record = await only(store, "a")
        assert (record.state, record.error) == ("REVOKED", "TaskRevokedError - cancelled")
        assert record.finished_at is not None
        assert record.cancel_requested_at is not None
        assert (await store.events("a"))[-1].data["state"] == "REVOKED"
        assert set(await store.cancelled(["a"])) == {"a"}

    async def test_a_running_task_is_marked(self, store: Store, other_store: Store) -> None:
        await store.transition(steps("a", "PENDING", "STARTED"))
        assert set(await store.request_cancel(["a"])) == {"a"}
        record = await only(other_store, "a")
        assert (record.state, record.cancel_requested_at is not None) == ("STARTED", True)
        assert set(await other_store.cancelled(["a"])) == {"a"}

    async def test_marking_twice_is_harmless(self, store: Store) -> None:
        await store.transition(steps("a", "STARTED"))
        await store.request_cancel(["a"])
        marked = (await only(store, "a")).cancel_requested_at
        assert set(await store.request_cancel(["a", "a"])) == {"a"}
        assert (await only(store, "a")).cancel_requested_at == marked

    @pytest.mark.parametrize("ending", ["SUCCESS", "FAILURE", "REVOKED"])
    async def test_what_has_ended_is_not_marked(self, store: Store, ending: str) -> None:
        await store.transition(steps("a", "PENDING", ending))
        assert not await store.request_cancel(["a", "unknown"])
        record = await only(store, "a")
        assert (record.state, record.cancel_requested_at) == (ending, None)
        assert set(await store.cancelled(["a", "unknown"])) == ({"a"} if ending == "REVOKED" else set())

    async def test_a_mark_holds_until_the_end(self, store: Store) -> None:
        await store.transition(steps("a", "STARTED"))
        await store.request_cancel(["a"])
        await store.transition([step("a", "RETRY", 1)])
        assert set(await store.cancelled(["a"])) == {"a"}
        await store.transition([step("a", "SUCCESS", 2)])
        assert not await store.cancelled(["a"])

    async def test_everybody_hears_of_it(self, store: Store, other_store: Store) -> None:
        await store.transition([*steps("a", "PENDING"), *steps("b", "STARTED"), *steps("c", "SUCCESS")])
        async with store.cancellations() as feed, other_store.cancellations() as other_feed:
            await other_store.request_cancel(["a", "b", "c", "unknown"])
            for listener in (feed, other_feed):
                heard: set[str] = set()
                while len(heard) < 2:
                    heard |= await _hear(listener)
                assert heard == {"a", "b"}

    async def test_what_was_cancelled_before_is_no_news(self, store: Store) -> None:
        await store.transition(steps("a", "STARTED"))
        await store.request_cancel(["a"])
        async with store.cancellations() as feed:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(feed.next(), _QUIET)
            await store.transition(steps("b", "STARTED"))
            await store.request_cancel(["b"])
            assert await _hear(feed) == {"b"}

    async def test_a_listener_that_gave_up_once_misses_nothing(self, store: Store) -> None:
        await store.transition([*steps("a", "STARTED"), *steps("b", "STARTED")])
        async with store.cancellations() as feed:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(feed.next(), 0.01)
            await store.request_cancel(["a"])
            await store.request_cancel(["b"])
            heard = await _hear(feed)
            while heard != {"a", "b"}:
                heard |= await _hear(feed)

    @pytest.mark.parametrize("forgets", [True, False])
    async def test_a_revoked_task_stays_so_without_its_record(
        self, store: Store, other_store: Store, forgets: bool
    ) -> None:
        long_ago = step("a", "PENDING", -_TWO_DAYS)
        await store.transition([long_ago, step("a", "REVOKED", -_TWO_DAYS), *steps("b", "PENDING")])
        await store.request_cancel(["b"])
        for _ in range(2):
            await store.forget(["a", "b"] if forgets else ["b"])
            await store.trim()
        assert not await store.get(["a", "b"])
        assert set(await other_store.cancelled(["a", "b", "unknown"])) == {"a", "b"}

    async def test_a_task_that_is_started_anew_is_not_cancelled(self, store: Store) -> None:
        await store.transition(steps("a", "PENDING"))
        await store.request_cancel(["a"])
        await store.forget(["a"])
        await store.transition(steps("a", "PENDING"))
        assert not await store.cancelled(["a"])
        await store.transition(steps("a", "SUCCESS"))
        await store.forget(["a"])
        assert not await store.cancelled(["a"])

    async def test_what_ended_otherwise_leaves_no_mark(self, store: Store) -> None:
        await store.transition([*steps("a", "STARTED"), *steps("b", "SUCCESS")])
        await store.request_cancel(["a"])
        await store.transition([step("a", "SUCCESS", 2)])
        await store.forget(["a", "b"])
        assert not await store.cancelled(["a", "b"])
