"""The events of a task."""

from __future__ import annotations

import pytest

from celeriac.stores.base import Store
from celeriac.stores.records import EventDraft, Progress
from celeriac.testing.contract.store_fixtures import FAILURE, NOW, StoreFixtures, at, only, step, steps

__all__ = ["EventCases"]


class EventCases(StoreFixtures):
    async def test_each_state_is_an_event(self, store: Store) -> None:
        await store.transition(
            [
                step("a", "PENDING"),
                step("a", "STARTED", 1, worker="w", retries=0),
                step("a", "RETRY", 2, result=FAILURE, retries=0),
            ]
        )
        events = await store.events("a")
        assert [(event.task_id, event.kind, event.at) for event in events] == [
            ("a", "state", at(second)) for second in range(3)
        ]
        assert [event.data for event in events] == [
            {"state": "PENDING", "retries": 0, "worker": None, "error": None},
            {"state": "STARTED", "retries": 0, "worker": "w", "error": None},
            {"state": "RETRY", "retries": 0, "worker": "w", "error": "ValueError - no, 1"},
        ]

    async def test_what_fills_in_is_no_event(self, store: Store) -> None:
        await store.transition([step("a", "STARTED", 1), step("a", "PENDING", name="t")])
        assert [event.data["state"] for event in await store.events("a")] == ["STARTED"]

    async def test_progress_and_values(self, store: Store, other_store: Store) -> None:
        await store.transition(steps("a", "PENDING", "STARTED"))
        await store.append_events(
            [
                EventDraft("a", "progress", '{"current": 1, "total": 4, "note": ""}', NOW + 2),
                EventDraft("a", "value", '{"row": "ü"}', NOW + 3),
                EventDraft("a", "progress", '{"current": 2.5, "total": null, "note": "half"}', NOW + 4),
                EventDraft("unknown", "value", "1", NOW + 5),
            ]
        )
        events = await other_store.events("a")
        assert [event.kind for event in events] == ["state", "state", "progress", "value", "progress"]
        assert events[3].data == {"row": "ü"}
        assert events[3].at == at(3)
        assert (await only(store, "a")).progress == Progress(2.5, None, "half")
        assert not await store.events("unknown")
        assert not await store.get(["unknown"])

    async def test_reading_on_after_an_event(self, store: Store) -> None:
        await store.transition(steps("a", "PENDING", "STARTED"))
        await store.transition(steps("b", "PENDING"))
        await store.append_events([EventDraft("a", "value", str(number), NOW) for number in range(10)])
        first = await store.events("a", limit=5)
        assert len(first) == 5
        rest = await store.events("a", after=first[-1].id)
        assert [event.data for event in rest] == list(range(3, 10))
        assert not await store.events("a", after=rest[-1].id)

    @pytest.mark.parametrize("bad", ["", "x", "-1", "1.5", "٣", "1" * 40])
    async def test_a_bad_event_id_is_refused(self, store: Store, bad: str) -> None:
        with pytest.raises(ValueError):
            await store.events("a", after=bad)
