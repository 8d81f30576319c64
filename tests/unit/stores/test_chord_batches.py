"""Parts of many callers are added at once, and each claim finds somebody who calls the body."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from celeriac.errors import StoreUnavailable
from celeriac.stores.chord_batches import PartBatches
from celeriac.stores.chords import ChordClaim, ChordPart
from celeriac.stores.memory_chords import MemoryChords


class Counted:
    """Chords in memory that are added to when the gate is open, and say in which batches that was."""

    def __init__(self) -> None:
        self.chords = MemoryChords({})
        self.batches: list[int] = []
        self.error: StoreUnavailable | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.parts = PartBatches(self._add, lambda: 5.0)

    async def _add(self, parts: Sequence[ChordPart]) -> list[ChordClaim]:
        self.batches.append(len(parts))
        await self.gate.wait()
        if self.error is not None and any(part.group_id == "bad" for part in parts):
            raise self.error
        return self.chords.add(parts, 5.0)

    async def add(self, *indexes: int, group_id: str = "g") -> list[str]:
        parts = [ChordPart(group_id, str(index), index, "SUCCESS", "1") for index in indexes]
        return [claim.group_id for claim in await self.parts.add(parts)]


async def test_callers_of_one_tick_share_a_batch_and_one_gets_the_claim() -> None:
    counted = Counted()
    counted.chords.set_size("g", 64)
    claims = await asyncio.gather(*(counted.add(index) for index in range(64)))
    assert counted.batches == [64]
    assert sorted(claims) == [[]] * 63 + [["g"]]
    assert await counted.add() == []


async def test_who_gets_a_claim_has_brought_a_part_of_that_chord() -> None:
    counted = Counted()
    for group_id in ("a", "b", "c"):
        counted.chords.set_size(group_id, 1)
    claims = await asyncio.gather(*(counted.add(0, group_id=group_id) for group_id in ("a", "b", "c")))
    assert claims == [["a"], ["b"], ["c"]]


async def test_what_comes_meanwhile_is_the_next_batch() -> None:
    counted = Counted()
    counted.gate.clear()
    first = asyncio.create_task(counted.add(0))
    while not counted.batches:
        await asyncio.sleep(0)
    others = [asyncio.create_task(counted.add(index)) for index in range(1, 5)]
    await asyncio.sleep(0)
    counted.gate.set()
    await asyncio.gather(first, *others)
    assert counted.batches == [1, 4]


async def test_the_claim_of_a_caller_who_has_gone_is_the_next_ones() -> None:
    counted = Counted()
    counted.chords.set_size("g", 1)
    counted.gate.clear()
    gone = asyncio.create_task(counted.add(0))
    while not counted.batches:
        await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    counted.gate.set()
    await counted.parts.drain()
    assert await counted.add(0, group_id="other") == []
    assert await asyncio.gather(counted.add(0), counted.add(0)) in ([["g"], []], [[], ["g"]])
    assert await counted.add(0) == []


async def test_an_outage_is_everybodys_and_asked_about_once() -> None:
    counted = Counted()
    counted.error = StoreUnavailable("away")
    answers = await asyncio.gather(
        counted.add(0), counted.add(0, group_id="bad"), counted.add(1), return_exceptions=True
    )
    assert answers == [counted.error] * 3
    assert len(counted.batches) == 1


async def test_a_mistake_is_nobody_elses() -> None:
    counted = Counted()
    counted.error = StoreUnavailable("of another type")
    counted.error.permanent = True
    counted.chords.set_size("g", 2)
    first, bad, last = await asyncio.gather(
        counted.add(0), counted.add(0, group_id="bad"), counted.add(1), return_exceptions=True
    )
    assert (first, bad, last) == ([], counted.error, ["g"])
