"""Batches keep order, and one bad item is its own trouble alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from celeriac.coalesce import Coalescer


async def test_what_comes_in_one_tick_goes_in_one_batch_and_in_order() -> None:
    batches: list[list[int]] = []

    async def flush(items: Sequence[int]) -> None:
        batches.append(list(items))
        await asyncio.sleep(0)

    coalescer = Coalescer(flush, limit=4)
    await asyncio.gather(*(coalescer.submit(i) for i in range(10)))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_bad_item_fails_alone() -> None:
    flushed: list[int] = []

    async def flush(items: Sequence[int]) -> None:
        if 3 in items:
            raise ValueError("three")
        flushed.extend(items)

    coalescer = Coalescer(flush)
    waiters = [coalescer.submit(i) for i in range(5)]
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 3 + [ValueError, type(None)]
    assert flushed == [0, 1, 2, 4]


async def test_cancelling_one_waiter_leaves_its_neighbours_alone() -> None:
    gate = asyncio.Event()

    async def flush(items: Sequence[int]) -> None:
        await gate.wait()

    coalescer = Coalescer(flush)
    first, second = coalescer.submit(1), coalescer.submit(2)
    first.cancel()
    gate.set()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    await coalescer.drain()
