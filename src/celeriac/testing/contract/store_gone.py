"""What is left of tasks whose records have expired."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

from celeriac.stores.base import Store
from celeriac.stores.records import Transition
from celeriac.testing.contract.store_fixtures import NewStore, StoreFixtures, only, steps

__all__ = ["GoneCases"]

_KEPT = 3600.0  # seconds that the fixtures' stores keep records
_LONG_AGO = 1_600_000_000.5  # epoch seconds


def _past(task_id: str, *states: str, owner: str | None = None) -> list[Transition]:
    """Transitions of a task of long ago, a second apart."""
    return [
        replace(step, at=_LONG_AGO + second)
        for second, step in enumerate(steps(task_id, *states, owner=owner))
    ]


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(_LONG_AGO + seconds, UTC)


async def _expire(store: Store) -> None:
    while await store.trim():
        pass


class GoneCases(StoreFixtures):
    async def test_an_expired_record_is_remembered(self, store: Store, other_store: Store) -> None:
        await store.transition([*_past("a", "PENDING", "SUCCESS", owner="ann"), *_past("b", "FAILURE")])
        await _expire(store)
        assert not await store.get(["a", "b"])
        gone = await other_store.gone(["a", "b", "unknown"])
        assert set(gone) == {"a", "b"}
        assert (gone["a"].task_id, gone["a"].owner, gone["a"].at) == ("a", "ann", _at(1 + _KEPT))
        assert (gone["b"].owner, gone["b"].at) == (None, _at(_KEPT))

    async def test_what_has_a_record_is_not_gone(self, store: Store) -> None:
        now = Transition(task_id="now", state="SUCCESS", at=time.time(), result="1")
        await store.transition([*_past("waits", "PENDING"), *_past("runs", "STARTED"), now])
        await _expire(store)
        assert not await store.gone(["waits", "runs", "now", "unknown"])
        assert not await store.gone([])

    async def test_a_task_that_is_started_anew_is_not_gone(self, store: Store) -> None:
        await store.transition(_past("a", "SUCCESS", owner="ann"))
        await _expire(store)
        await store.transition(_past("a", "PENDING", owner="bob"))
        assert not await store.gone(["a"])
        assert (await only(store, "a")).owner == "bob"

    async def test_a_task_that_expires_twice_is_the_second_owners(self, store: Store) -> None:
        for owner in ("ann", "bob"):
            await store.transition(_past("a", "SUCCESS", owner=owner))
            await _expire(store)
        assert (await store.gone(["a"]))["a"].owner == "bob"

    async def test_what_is_forgotten_leaves_no_trace(self, store: Store) -> None:
        await store.transition([*_past("a", "SUCCESS"), *_past("b", "SUCCESS"), *_past("c", "SUCCESS")])
        await store.forget(["a"])
        await _expire(store)
        assert set(await store.gone(["a", "b", "c"])) == {"b", "c"}
        assert await store.forget(["b"]) == 0
        await store.transition(_past("c", "PENDING"))
        await store.forget(["c"])
        assert not await store.gone(["a", "b", "c"])

    async def test_it_is_remembered_for_as_long_again(self, new_store: NewStore) -> None:
        store = new_store(1.0)
        await store.open()
        await store.transition(_past("a", "SUCCESS"))
        before = time.time()
        await _expire(store)
        assert set(await store.gone(["a"])) == {"a"}
        while await store.gone(["a"]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert 0.9 < time.time() - before < 10
        await store.trim()
        await store.transition(_past("a", "PENDING"))
        assert set(await store.get(["a"])) == {"a"}
        await store.close()

    async def test_many_expire_at_once(self, store: Store) -> None:
        ids = [f"task-{number}" for number in range(700)]
        await store.transition([step for id_ in ids for step in _past(id_, "SUCCESS", owner="ann")])
        await _expire(store)
        assert set(await store.gone(ids)) == set(ids)
