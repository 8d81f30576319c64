"""Chords: parts are counted, and exactly one worker calls the body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from celeriac.stores.base import Store
from celeriac.stores.chords import ChordClaim, ChordPart
from celeriac.testing.contract.store_fixtures import FAILURE, NewStore, StoreFixtures

__all__ = ["ChordCases"]


def _part(
    index: int | None, group_id: str = "g", state: str = "SUCCESS", result: str | None = None
) -> ChordPart:
    return ChordPart(group_id, f"{group_id}-{index}", index, state, result or json.dumps(index))


def _parts(indexes: Iterable[int], group_id: str = "g") -> list[ChordPart]:
    return [_part(index, group_id) for index in indexes]


async def _claim(store: Store, parts: list[ChordPart]) -> ChordClaim:
    (claim,) = await store.add_chord_parts(parts)
    return claim


async def _expiry(store: Store, group_id: str) -> None:
    """Wait until the claim of before has expired; no store tells."""
    async with asyncio.timeout(5):
        while await store.claimed_chords([group_id]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


class ChordCases(StoreFixtures):
    async def test_the_last_part_claims_the_chord_in_the_headers_order(self, store: Store) -> None:
        await store.set_chord_size("g", 3)
        assert await store.add_chord_parts([_part(2)]) == []
        assert await store.add_chord_parts([_part(0)]) == []
        claim = await _claim(store, [_part(1)])
        assert (claim.group_id, claim.parts, claim.header) == ("g", _parts(range(3)), None)
        assert await store.finish_chord(claim)

    async def test_places_are_numbers_and_a_part_without_one_comes_last(self, store: Store) -> None:
        parts = [_part(None), *_parts([10, 9, 2])]
        await store.set_chord_size("g", 4)
        claim = await _claim(store, parts)
        assert [part.index for part in claim.parts] == [2, 9, 10, None]

    async def test_a_part_counts_once(self, store: Store) -> None:
        await store.set_chord_size("g", 2)
        assert await store.add_chord_parts([_part(0), _part(0)]) == []
        again = _part(0, result='"of another run"')
        assert await store.add_chord_parts([again]) == []
        claim = await _claim(store, [_part(1)])
        assert claim.parts == _parts([0, 1])

    async def test_one_task_in_two_places_counts_twice(self, store: Store) -> None:
        parts = [ChordPart("g", "same", index, "SUCCESS", str(index)) for index in range(2)]
        await store.set_chord_size("g", 2)
        assert (await _claim(store, parts)).parts == parts

    async def test_the_size_may_come_after_parts(self, store: Store) -> None:
        assert await store.add_chord_parts(_parts([0, 1])) == []
        await store.set_chord_size("g", 3)
        assert (await _claim(store, [_part(2)])).parts == _parts(range(3))

    async def test_parts_that_all_came_before_the_size_are_claimed_when_one_comes_again(
        self, store: Store
    ) -> None:
        assert await store.add_chord_parts(_parts([0, 1])) == []
        await store.set_chord_size("g", 2)
        assert (await _claim(store, [_part(1)])).parts == _parts([0, 1])

    async def test_an_extended_chord_waits_for_more(self, store: Store) -> None:
        await store.extend_chord("g")
        await store.set_chord_size("g", 1)
        await store.extend_chord("g", 2)
        assert await store.add_chord_parts(_parts(range(3))) == []
        assert len((await _claim(store, [_part(3)])).parts) == 4

    async def test_states_and_results_come_as_they_were_given(self, store: Store) -> None:
        parts = [
            _part(0, state="FAILURE", result=FAILURE),
            _part(1, result='{"größe": [1.5, null, "a\\u0000\\ud83d\\ude00"]}'),
            _part(2, state="REVOKED", result=FAILURE),
        ]
        await store.set_chord_size("g", 3)
        found = (await _claim(store, parts)).parts
        assert [(part.state, json.loads(part.result)) for part in found] == [
            (part.state, json.loads(part.result)) for part in parts
        ]

    async def test_a_header_with_groups_in_it_is_kept(self, store: Store) -> None:
        header = '[["g",null],[[["a",null],null],[["inner",null],[[["b",null],null]]]]]'
        await store.save_chord_header("g", header)
        await store.set_chord_size("g", 1)
        kept = (await _claim(store, [_part(0)])).header
        assert kept is not None
        assert json.loads(kept) == json.loads(header)

    async def test_many_chords_in_one_batch(self, store: Store) -> None:
        for group_id in ("a", "b", "c"):
            await store.set_chord_size(group_id, 2)
        parts = [*_parts([0], "a"), *_parts([0, 1], "b"), *_parts([1], "a"), *_parts([0], "c")]
        claims = {claim.group_id: claim for claim in await store.add_chord_parts(parts)}
        assert set(claims) == {"a", "b"}
        assert claims["a"].parts == _parts([0, 1], "a")
        assert await store.finish_chord(claims["a"])
        assert await store.finish_chord(claims["b"])
        assert await store.add_chord_parts([]) == []

    async def test_a_thousand_parts_in_batches(self, store: Store, other_store: Store) -> None:
        await store.set_chord_size("g", 1000)
        batches = [_parts(range(start, 1000, 16)) for start in range(16)]
        claims = await asyncio.gather(
            *((store, other_store)[number % 2].add_chord_parts(batch) for number, batch in enumerate(batches))
        )
        (claim,) = (claim for found in claims for claim in found)
        assert claim.parts == _parts(range(1000))

    async def test_of_two_who_complete_a_chord_one_gets_it(self, store: Store, other_store: Store) -> None:
        for run in range(20):
            group_id = f"g{run}"
            await store.set_chord_size(group_id, 2)
            claims = await asyncio.gather(
                store.add_chord_parts([_part(0, group_id)]), other_store.add_chord_parts([_part(1, group_id)])
            )
            assert [claim.group_id for found in claims for claim in found] == [group_id]

    async def test_a_claimed_chord_is_nobody_elses(self, store: Store, other_store: Store) -> None:
        await store.set_chord_size("g", 1)
        assert await other_store.claimed_chords(["g"]) == set()
        claim = await _claim(store, [_part(0)])
        assert await other_store.add_chord_parts([_part(0)]) == []
        assert await other_store.claimed_chords(["g", "unknown"]) == {"g"}
        assert await store.finish_chord(claim)
        assert await other_store.claimed_chords(["g"]) == set()

    async def test_a_claim_expires_for_who_adds_a_part_again(self, store: Store, other_store: Store) -> None:
        store.chord_claim = 1.0
        await store.set_chord_size("g", 2)
        lost = await _claim(store, _parts([0, 1]))
        await _expiry(other_store, "g")
        claim = await _claim(other_store, [_part(1)])
        assert claim.parts == _parts([0, 1])
        assert not await store.finish_chord(lost)
        assert await other_store.finish_chord(claim)

    async def test_a_part_that_comes_again_waits_for_the_claimant(
        self, store: Store, other_store: Store
    ) -> None:
        store.chord_claim = 1.0
        await store.set_chord_size("g", 1)
        lost = await _claim(store, [_part(0)])
        (claim,) = await other_store.add_chord_parts_again([_part(0)])
        assert claim.token != lost.token
        waiting = asyncio.create_task(store.add_chord_parts_again([_part(0)]))
        await other_store.finish_chord(claim)
        assert await waiting == []
        assert await store.add_chord_parts_again([_part(0, "unknown")]) == []

    async def test_who_is_late_may_finish_what_nobody_else_has_claimed(self, store: Store) -> None:
        store.chord_claim = 1.0
        await store.set_chord_size("g", 1)
        claim = await _claim(store, [_part(0)])
        await _expiry(store, "g")
        assert await store.finish_chord(claim)
        assert await store.add_chord_parts([_part(0)]) == []

    async def test_late_duplicates_of_a_finished_chord_do_nothing(
        self, store: Store, other_store: Store
    ) -> None:
        await store.set_chord_size("g", 2)
        claim = await _claim(store, _parts([0, 1]))
        assert await store.finish_chord(claim)
        assert await other_store.add_chord_parts(_parts([0, 1])) == []
        assert await other_store.claimed_chords(["g"]) == set()
        assert not await store.finish_chord(claim)

    async def test_a_new_run_of_a_group_is_counted_anew(self, store: Store) -> None:
        for _ in range(2):
            await store.set_chord_size("g", 2)
            assert await store.add_chord_parts([_part(0)]) == []
            claim = await _claim(store, [_part(1)])
            assert claim.parts == _parts([0, 1])
            assert await store.finish_chord(claim)

    async def test_a_chord_without_a_size_is_never_complete(self, store: Store) -> None:
        assert await store.add_chord_parts(_parts(range(3), "unknown")) == []
        assert await store.claimed_chords(["unknown"]) == set()
        assert not await store.finish_chord(ChordClaim("unknown", "token", []))

    async def test_cleaning_up_forgets_chords_that_nobody_completes(self, new_store: NewStore) -> None:
        store = new_store(1.0)
        await store.open()
        try:
            await store.set_chord_size("g", 2)
            await store.add_chord_parts([_part(0)])
            await asyncio.sleep(1.1)  # on no server is there anything to wait for
            await store.trim()
            assert await store.add_chord_parts([_part(1)]) == []
        finally:
            await store.close()
