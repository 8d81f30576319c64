"""Idempotency keys: one task for each, whoever asks and however often."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from celeriac.stores.base import Store
from celeriac.testing.contract.store_fixtures import NewStore, StoreFixtures, steps

__all__ = ["KeyCases"]

_SHORT = 0.02  # seconds; nobody tells when a key expires


class KeyCases(StoreFixtures):
    async def test_a_free_key_is_taken(self, store: Store) -> None:
        claim = await store.claim_key("key", "print", "task", expires=60)
        assert (claim.task_id, claim.fingerprint, claim.new) == ("task", "print", True)
        assert claim.at.tzinfo is UTC
        assert abs(datetime.now(UTC) - claim.at) < timedelta(seconds=10)

    async def test_who_comes_later_gets_the_claim_that_is_there(
        self, store: Store, other_store: Store
    ) -> None:
        first = await store.claim_key("key", "print", "task", expires=60)
        for fingerprint in ("print", "another print"):
            claim = await other_store.claim_key("key", fingerprint, "another task", expires=60)
            assert (claim.task_id, claim.fingerprint, claim.new) == ("task", "print", False)
            assert claim.at == first.at

    async def test_keys_are_whole_texts(self, store: Store) -> None:
        texts = ["k", "K", "k ", "k:k", "ü\n'\"\\", "k" * 1000]
        claims = [
            await store.claim_key(key, f"{key}-print", f"{number}", expires=60)
            for number, key in enumerate(texts)
        ]
        assert all(claim.new for claim in claims)
        again = [await store.claim_key(key, "", "task", expires=60) for key in texts]
        assert [claim.task_id for claim in again] == [str(number) for number in range(len(texts))]
        assert [claim.fingerprint for claim in again] == [f"{key}-print" for key in texts]

    async def test_a_lost_answer_is_asked_for_again(self, store: Store) -> None:
        await store.claim_key("key", "print", "task", expires=60)
        assert (await store.claim_key("key", "print", "task", expires=60)).new
        assert not (await store.claim_key("key", "another print", "task", expires=60)).new

    async def test_of_many_at_once_one_is_new(self, store: Store, other_store: Store) -> None:
        claims = await asyncio.gather(
            *(
                (store, other_store)[number % 2].claim_key("key", "print", f"task-{number}", expires=60)
                for number in range(50)
            )
        )
        (new,) = [claim for claim in claims if claim.new]
        assert {claim.task_id for claim in claims} == {new.task_id}

    async def test_an_expired_key_is_free(self, store: Store) -> None:
        await store.claim_key("key", "print", "task", expires=_SHORT)
        while not (claim := await store.claim_key("key", "another print", "another task", expires=60)).new:  # noqa: ASYNC110
            await asyncio.sleep(_SHORT)
        assert (claim.task_id, claim.fingerprint) == ("another task", "another print")

    async def test_asking_again_does_not_prolong_a_claim(self, store: Store) -> None:
        await store.claim_key("key", "print", "task", expires=_SHORT)
        await store.claim_key("key", "print", "task", expires=3600)
        while not (await store.claim_key("key", "print", "another task", expires=60)).new:  # noqa: ASYNC110
            await asyncio.sleep(_SHORT)

    async def test_a_key_is_released_by_its_task_alone(self, store: Store) -> None:
        await store.claim_key("key", "print", "task", expires=60)
        await store.release_key("key", "another task")
        await store.release_key("another key", "task")
        assert (await store.claim_key("key", "print", "another task", expires=60)).task_id == "task"
        await store.release_key("key", "task")
        assert (await store.claim_key("key", "print", "another task", expires=60)).new

    async def test_a_key_outlives_its_process_and_its_tasks_record(self, new_store: NewStore) -> None:
        first = new_store(None)
        await first.open()
        await first.claim_key("key", "print", "task", expires=60)
        await first.transition(steps("task", "SUCCESS"))
        await first.forget(["task"])
        await first.close()
        second = new_store(1)
        await second.open()
        await second.trim()
        assert (await second.claim_key("key", "print", "another task", expires=60)).task_id == "task"
        await second.close()
