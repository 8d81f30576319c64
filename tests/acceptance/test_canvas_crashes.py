"""Workers that are killed in the middle of a canvas: it goes on where it was, and its end comes out as it should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from tests.acceptance.ledger import Ledger, until, wait_until_nothing_is_held
from tests.acceptance.processes import Launcher
from tests.services import RedisServer

MakeLedger = Callable[..., Ledger]


@pytest.fixture(params=["sqlite", "redis"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, launcher: Launcher) -> Iterator[Ledger]:
    server: RedisServer | None = None
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
    yield Ledger(
        tmp_path / "ledger-app",
        launcher,
        url=server.url if server else None,
        conf={"celeriac_lease": 1.0, "celeriac_delivery_limit": 20},
    )
    if server is not None:
        wait_until_nothing_is_held(server)


async def kill_again_and_again(ledger: Ledger, times: int, step: int) -> None:
    """Kill the worker each time that it has finished so many tasks more; the last one lives."""
    for _ in range(times):
        worker = await asyncio.to_thread(ledger.start_worker, "-c", "10")
        finished = ledger.lines("end").total()
        await until(lambda finished=finished: ledger.lines("end").total() >= finished + step)  # type: ignore[misc]
        worker.kill()
        await asyncio.to_thread(worker.wait)
    await asyncio.to_thread(ledger.start_worker, "-c", "10")


def signature(ledger: Ledger, name: str, *args: Any) -> Any:
    return ledger.client.signature(f"ledger.{name}", args)


async def test_a_chord_counts_each_part_once_however_often_workers_die(ledger: Ledger) -> None:
    parts = [signature(ledger, "number", value) for value in range(120)]
    async with ledger.client:
        handle = await ledger.client.enqueue(
            chain(group(parts), signature(ledger, "total"), signature(ledger, "increase"))
        )
        await kill_again_and_again(ledger, 2, 30)
        assert await handle.result(60) == sum(range(120)) + 1


async def test_chains_go_on_where_they_were(ledger: Ledger) -> None:
    async with ledger.client:
        handles = [
            await ledger.client.enqueue(
                chain(signature(ledger, "number", 0), *(signature(ledger, "increase") for _ in range(5)))
            )
            for _ in range(10)
        ]
        await kill_again_and_again(ledger, 2, 10)
        async with asyncio.timeout(60):
            assert [await handle.result() for handle in handles] == [5] * 10


async def test_a_chord_whose_worker_dies_while_its_body_runs(ledger: Ledger) -> None:
    async with ledger.client:
        body = ledger.client.signature("ledger.total", (), {"seconds": 3.0})
        handle = await ledger.client.enqueue(
            chord([signature(ledger, "number", value) for value in (1, 2, 3)], body)
        )
        worker = await asyncio.to_thread(ledger.start_worker)
        await until(lambda: handle.id in ledger.lines("start"))
        worker.kill()
        await asyncio.to_thread(ledger.start_worker)
        assert await handle.result(30) == 6
    assert ledger.lines("start")[handle.id] == 2


async def test_errbacks_of_a_failed_part_are_called(ledger: Ledger) -> None:
    async with ledger.client:
        await asyncio.to_thread(ledger.start_worker)
        failing = signature(ledger, "fails").on_error(signature(ledger, "errback"))
        handle = await ledger.client.enqueue(failing)
        with pytest.raises(ValueError, match="as told"):
            await handle.result(30)
        await until(lambda: f"errback-of-{handle.id}" in ledger.lines("end"))
