"""Records and the states that they enter."""

from __future__ import annotations

import math

import pytest

from celeriac.stores.base import Store
from celeriac.testing.contract.store_fixtures import (
    FAILURE,
    NOW,
    NewStore,
    StoreFixtures,
    at,
    only,
    step,
    steps,
)

__all__ = ["TransitionCases"]


class TransitionCases(StoreFixtures):
    async def test_an_id_without_a_record_is_unknown(self, store: Store) -> None:
        await store.transition([step("known", "PENDING")])
        assert set(await store.get(["known", "unknown"])) == {"known"}
        assert await store.get([]) == {}

    async def test_enqueueing_creates_a_record_that_others_read(
        self, store: Store, other_store: Store
    ) -> None:
        await store.transition(
            [
                step(
                    "a",
                    "PENDING",
                    name="shop.send",
                    queue="mail",
                    args='["é", 1]',
                    kwargs='{"x": null}',
                    owner="ann",
                    root_id="r",
                    parent_id="p",
                    group_id="g",
                    eta=NOW + 5,
                    expires=NOW + 9,
                    retries=0,
                )
            ]
        )
        record = await only(other_store, "a")
        assert (record.state, record.name, record.queue) == ("PENDING", "shop.send", "mail")
        assert (record.args, record.kwargs) == (["é", 1], {"x": None})
        assert (record.owner, record.root_id, record.parent_id, record.group_id) == ("ann", "r", "p", "g")
        assert (record.enqueued_at, record.eta, record.expires) == (at(0), at(5), at(9))
        assert (record.started_at, record.finished_at, record.result, record.worker) == (
            None,
            None,
            None,
            None,
        )
        assert not record.ready

    async def test_a_whole_life(self, store: Store) -> None:
        await store.transition([step("a", "PENDING", name="t")])
        await store.transition([step("a", "STARTED", 1, worker="w1", retries=0)])
        await store.transition(
            [step("a", "SUCCESS", 2, result='{"n": [1.5, "ü"]}', children='[["c", null]]')]
        )
        record = await only(store, "a")
        assert (record.state, record.ready, record.worker) == ("SUCCESS", True, "w1")
        assert (record.enqueued_at, record.started_at, record.finished_at) == (at(0), at(1), at(2))
        assert record.result == {"n": [1.5, "ü"]}
        assert record.children == [["c", None]]

    async def test_a_worker_faster_than_the_publisher(self, store: Store) -> None:
        await store.transition([step("a", "STARTED", 1, worker="w")])
        await store.transition([step("a", "SUCCESS", 2, result="1", args="[0]")])
        await store.transition([step("a", "PENDING", 0, name="t", args="[1]", owner="ann", eta=NOW)])
        record = await only(store, "a")
        assert (record.state, record.result) == ("SUCCESS", 1)
        assert (record.name, record.owner, record.enqueued_at, record.eta) == ("t", "ann", at(0), at(0))
        assert record.args == [0], "what is known is not filled in again"

    async def test_the_call_stays_and_the_delivery_changes(self, store: Store) -> None:
        await store.transition([step("a", "PENDING", name="t", args='["***"]', queue="q", retries=0)])
        await store.transition([step("a", "RETRY", 1, args='["secret"]', queue="q2", retries=1, eta=NOW + 7)])
        record = await only(store, "a")
        assert (record.args, record.queue, record.retries, record.eta) == (["***"], "q2", 1, at(7))

    @pytest.mark.parametrize(
        "late", ["PENDING", "STARTED", "RETRY", "FAILURE", "REVOKED", "PROGRESS", "SUCCESS"]
    )
    async def test_success_is_final(self, store: Store, late: str) -> None:
        await store.transition(
            [*steps("a", "PENDING", "STARTED", retries=0), step("a", "SUCCESS", 2, result="1")]
        )
        before, events = await only(store, "a"), await store.events("a")
        await store.transition([step("a", late, 3, result="2", retries=5, worker="late")])
        assert await only(store, "a") == before
        assert await store.events("a") == events

    @pytest.mark.parametrize("late", ["PENDING", "STARTED", "RETRY", "FAILURE", "SUCCESS", "PROGRESS"])
    async def test_revoked_is_left_by_replay_alone(self, store: Store, late: str) -> None:
        await store.transition(steps("a", "PENDING", "REVOKED"))
        await store.transition([step("a", late, 3, result="2", retries=5)])
        assert (await only(store, "a")).state == "REVOKED"

    @pytest.mark.parametrize(
        ("late", "retries", "state"),
        [
            ("STARTED", 1, "STARTED"),
            ("RETRY", 1, "RETRY"),
            ("SUCCESS", 1, "FAILURE"),
            ("SUCCESS", None, "FAILURE"),
            ("SUCCESS", 2, "SUCCESS"),
            ("REVOKED", 2, "REVOKED"),
            ("PROGRESS", 2, "FAILURE"),
            ("PENDING", 2, "FAILURE"),
        ],
    )
    async def test_failure_is_left_by_a_later_attempt(
        self, store: Store, late: str, retries: int | None, state: str
    ) -> None:
        await store.transition(steps("a", "PENDING", "STARTED", "FAILURE", retries=1))
        await store.transition([step("a", late, 3, retries=retries)])
        record = await only(store, "a")
        assert record.state == state
        assert (record.finished_at is not None) == record.ready

    async def test_result_and_traceback_belong_to_the_state(self, store: Store) -> None:
        await store.transition([step("a", "RETRY", result=FAILURE, traceback="Traceback …")])
        assert (await only(store, "a")).error == "ValueError - no, 1"
        assert (await only(store, "a")).traceback == "Traceback …"
        await store.transition([step("a", "STARTED", 1)])
        assert ((await only(store, "a")).result, (await only(store, "a")).traceback) == (None, None)

    async def test_custom_states(self, store: Store) -> None:
        await store.transition(
            [*steps("a", "PENDING", "STARTED"), step("a", "UPLOADING", 2, result='{"done": 3}')]
        )
        record = await only(store, "a")
        assert (record.state, record.result, record.ready, record.error) == (
            "UPLOADING",
            {"done": 3},
            False,
            None,
        )

    @pytest.mark.parametrize("ending", ["SUCCESS", "FAILURE", "REVOKED"])
    async def test_replay_starts_over(self, store: Store, ending: str) -> None:
        await store.transition(
            [
                step("a", "PENDING", name="t", args="[1]", owner="ann", expires=NOW + 1, retries=2),
                step("a", "STARTED", 1, worker="w"),
                step("a", ending, 2, result=FAILURE, traceback="tb", children="[]"),
            ]
        )
        await store.request_cancel(["a"])
        await store.transition([step("a", "PENDING", 10, args="[2]", replay=True)])
        record = await only(store, "a")
        assert (record.state, record.retries, record.enqueued_at) == ("PENDING", 0, at(10))
        assert (record.name, record.args, record.owner, record.expires) == ("t", [2], "ann", None)
        assert (record.result, record.traceback, record.children, record.progress) == (None, None, None, None)
        assert (record.started_at, record.finished_at, record.worker) == (None, None, None)
        assert record.cancel_requested_at is None
        assert [attempt.state for attempt in record.attempts] == [ending]
        assert not await store.cancelled(["a"])

    async def test_replay_of_an_unknown_task_creates_it(self, store: Store) -> None:
        await store.transition([step("a", "PENDING", replay=True, name="t")])
        assert (await only(store, "a")).name == "t"

    async def test_one_call_may_hold_a_whole_life_of_many(self, store: Store) -> None:
        ids = [f"task-{number}" for number in range(150)]
        lives = [steps(task_id, "PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS") for task_id in ids]
        await store.transition([transition for round_ in zip(*lives, strict=True) for transition in round_])
        records = await store.get(ids)
        assert {record.state for record in records.values()} == {"SUCCESS"}
        assert [len(record.attempts) for record in records.values()] == [2] * 150
        assert len(await store.events(ids[77])) == 5

    async def test_awkward_text_comes_back(self, store: Store) -> None:
        text = "quote ' \" percent % colon :x question ? newline \n nul \\u0000 emoji 😀"
        await store.transition(
            [step("a'b\"%:?", "FAILURE", name=text, worker=text, traceback=text, result='"\\u0000\\ud800"')]
        )
        record = await only(store, "a'b\"%:?")
        assert (record.name, record.worker, record.traceback) == (text, text, text)
        assert record.result == "\x00\ud800"

    async def test_numbers_that_json_does_not_have(self, store: Store) -> None:
        await store.transition([step("a", "SUCCESS", result='{"mean": NaN, "max": Infinity}')])
        result = (await only(store, "a")).result
        assert math.isnan(result["mean"])
        assert result["max"] == math.inf

    async def test_text_that_is_no_unicode_does_no_harm(self, store: Store) -> None:
        await store.transition([step("a", "FAILURE", traceback="file \udce9.py", result='["\udce9"]')])
        assert "file" in ((await only(store, "a")).traceback or "")

    async def test_forgetting(self, store: Store, other_store: Store) -> None:
        await store.transition([*steps("a", "PENDING", "SUCCESS"), *steps("b", "PENDING")])
        assert await store.forget(["a", "unknown"]) == 1
        assert set(await other_store.get(["a", "b"])) == {"b"}
        assert not await other_store.events("a")
        await store.transition([step("a", "PENDING", 5, name="again")])
        assert (await only(store, "a")).name == "again"
        assert [event.data["state"] for event in await store.events("a")] == ["PENDING"]

    async def test_trimming_deletes_what_ended_long_ago(self, new_store: NewStore) -> None:
        store = new_store(0.0)
        await store.open()
        await store.transition([*steps("done", "PENDING", "SUCCESS"), *steps("open", "PENDING", "STARTED")])
        # The tests' time lies ahead of the clock by now, or behind: what counts is when a task has ended.
        await store.transition([step("old", "SUCCESS", -NOW + 1.0)])
        while await store.trim():
            pass
        assert "old" not in await store.get(["old"])
        assert "open" in await store.get(["open"])
        assert not await store.events("old")
        await store.close()

    async def test_without_expiry_nothing_is_trimmed(self, new_store: NewStore) -> None:
        store = new_store(None)
        await store.open()
        await store.transition([step("old", "SUCCESS", -NOW + 1.0)])
        assert await store.trim() == 0
        assert "old" in await store.get(["old"])
        await store.close()
