"""The history of a task's attempts."""

from __future__ import annotations

from celeriac.stores.base import Store
from celeriac.stores.records import Attempt
from celeriac.testing.contract.store_fixtures import FAILURE, StoreFixtures, at, only, step, steps

__all__ = ["AttemptCases"]


class AttemptCases(StoreFixtures):
    async def test_each_start_is_an_attempt(self, store: Store) -> None:
        await store.transition(
            [
                step("a", "PENDING"),
                step("a", "STARTED", 1, worker="w1", retries=0),
                step("a", "RETRY", 2, result=FAILURE, retries=0),
                step("a", "STARTED", 3, worker="w2", retries=1),
                step("a", "SUCCESS", 4, result="1"),
            ]
        )
        assert list((await only(store, "a")).attempts) == [
            Attempt(0, "w1", at(1), "RETRY", "ValueError - no, 1"),
            Attempt(1, "w2", at(3), "SUCCESS", None),
        ]

    async def test_a_redelivery_is_an_attempt_of_its_own(self, store: Store) -> None:
        await store.transition(steps("a", "PENDING", "STARTED", "STARTED", "SUCCESS"))
        assert [attempt.state for attempt in (await only(store, "a")).attempts] == ["STARTED", "SUCCESS"]

    async def test_an_attempt_that_has_ended_stays_as_it_was(self, store: Store) -> None:
        await store.transition(steps("a", "PENDING", "STARTED", "RETRY"))
        await store.transition([step("a", "REVOKED", 3)])
        assert [attempt.state for attempt in (await only(store, "a")).attempts] == ["RETRY"]

    async def test_a_custom_state_updates_the_attempt(self, store: Store) -> None:
        await store.transition(steps("a", "STARTED", "UPLOADING"))
        assert [attempt.state for attempt in (await only(store, "a")).attempts] == ["UPLOADING"]
        await store.transition([step("a", "FAILURE", 2, result=FAILURE)])
        attempt = (await only(store, "a")).attempts[-1]
        assert (attempt.state, attempt.error) == ("FAILURE", "ValueError - no, 1")

    async def test_the_last_twenty_attempts_are_kept(self, store: Store) -> None:
        for retries in range(25):
            await store.transition(
                [step("a", "STARTED", retries, retries=retries), step("a", "RETRY", retries, result=FAILURE)]
            )
        attempts = (await only(store, "a")).attempts
        assert [attempt.retries for attempt in attempts] == list(range(5, 25))
        assert {attempt.state for attempt in attempts} == {"RETRY"}
