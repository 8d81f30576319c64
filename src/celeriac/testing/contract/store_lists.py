"""Lists of records."""

from __future__ import annotations

import pytest

from celeriac.stores.base import Store
from celeriac.stores.records import RecordFilter
from celeriac.testing.contract.store_fixtures import StoreFixtures, at, step, steps

__all__ = ["ListCases"]


async def _ids(store: Store, where: RecordFilter) -> list[str]:
    return [record.id for record in (await store.list(where)).records]


class ListCases(StoreFixtures):
    async def test_newest_first_in_pages(self, store: Store, other_store: Store) -> None:
        await store.transition([step(f"task-{number}", "PENDING", number) for number in range(7)])
        await store.transition([step("task-0", "STARTED", 99)])
        seen: list[str] = []
        cursor: str | None = None
        sizes = []
        while True:
            page = await other_store.list(RecordFilter(), cursor, limit=3)
            seen += [record.id for record in page.records]
            sizes.append(len(page.records))
            await store.transition([step(f"later-{len(seen)}", "PENDING", 100)])
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == [f"task-{number}" for number in reversed(range(7))]
        assert sizes == [3, 3, 1]

    async def test_a_full_last_page_has_no_cursor(self, store: Store) -> None:
        await store.transition([step("a", "PENDING"), step("b", "PENDING")])
        assert (await store.list(RecordFilter(), limit=2)).cursor is None
        assert (await store.list(RecordFilter(state="FAILURE"))).records == []

    @pytest.mark.parametrize("bad", ["", "x", "-1", "1.5", "1" * 40])
    async def test_a_bad_cursor_is_refused(self, store: Store, bad: str) -> None:
        with pytest.raises(ValueError):
            await store.list(RecordFilter(), bad)

    async def test_filters(self, store: Store) -> None:
        await store.transition(
            [
                step("a", "PENDING", 0, name="mail", queue="q1", owner="ann"),
                step("b", "PENDING", 10, name="mail", queue="q2", owner="bob"),
                step("c", "PENDING", 20, name="scan", queue="q1", owner="ann"),
                *steps("b", "STARTED", "SUCCESS"),
                *steps("c", "STARTED", "FAILURE"),
            ]
        )
        assert await _ids(store, RecordFilter(name="mail")) == ["b", "a"]
        assert await _ids(store, RecordFilter(queue="q1")) == ["c", "a"]
        assert await _ids(store, RecordFilter(owner="ann")) == ["c", "a"]
        assert await _ids(store, RecordFilter(state="SUCCESS")) == ["b"]
        assert await _ids(store, RecordFilter(state="FAILURE")) == ["c"]
        assert await _ids(store, RecordFilter(state="PENDING", owner="ann")) == ["a"]
        assert await _ids(store, RecordFilter(since=at(10))) == ["c", "b"]
        assert await _ids(store, RecordFilter(until=at(10))) == ["a"]
        assert await _ids(store, RecordFilter(since=at(5), until=at(15), name="scan")) == []

    async def test_search(self, store: Store) -> None:
        await store.transition(
            [
                step("id-one", "PENDING", name="shop.mail", args='["100%_sure", "ü"]', kwargs="{}"),
                step(
                    "id-two",
                    "PENDING",
                    name="shop.scan",
                    args='["100 sure", "\\u00fc"]',
                    kwargs='{"who": "Ann"}',
                ),
                step("id-three", "PENDING"),
            ]
        )
        assert await _ids(store, RecordFilter(search="ID-T")) == ["id-three", "id-two"]
        assert await _ids(store, RecordFilter(search="shop.")) == ["id-two", "id-one"]
        assert await _ids(store, RecordFilter(search="100%_s")) == ["id-one"]
        assert await _ids(store, RecordFilter(search="ann")) == ["id-two"]
        assert await _ids(store, RecordFilter(search="ü")) == ["id-two", "id-one"]
        assert await _ids(store, RecordFilter(search="' OR 1=1 --")) == []
