"""Stock Celery beside our worker, on the same SQLite file: the prefork pool, and Flower."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.acceptance.ledger import Ledger
from tests.acceptance.processes import Launcher, free_port, wait_until_up


@pytest.fixture
def ledger(tmp_path: Path, launcher: Launcher) -> Ledger:
    return Ledger(tmp_path / "ledger-app", launcher)


async def test_a_stock_prefork_worker_shares_the_queue(ledger: Ledger) -> None:
    await asyncio.to_thread(ledger.start_worker, "-P", "processes", "-c", "2", "-n", "stock@%h")
    async with ledger.client:
        handle = await ledger.client.enqueue("ledger.add", (1, 2))
        assert await handle.result(20) == 3
        record = await handle.record()
        assert (record.worker or "").startswith("stock@")
        assert [attempt.state for attempt in record.attempts] == ["SUCCESS"]
        slow = await ledger.client.enqueue("ledger.work_in_thread", (0.2,), countdown=0.5)
        assert await slow.result(20) == slow.id
        coroutine = await ledger.client.enqueue("ledger.work", (0.01,))
        assert await coroutine.result(20) == coroutine.id
        assert ledger.lines("start") == ledger.lines("end")


async def test_both_kinds_of_worker_take_their_share(ledger: Ledger) -> None:
    await asyncio.to_thread(ledger.start_worker, "-P", "processes", "-c", "2", "-n", "stock@%h")
    await asyncio.to_thread(ledger.start_worker, "-c", "2", "-n", "ours@%h")
    async with ledger.client:
        signatures = [ledger.client.signature("ledger.work_in_thread", (0.05,)) for _ in range(60)]
        handles = await ledger.client.enqueue_many(signatures)
        for handle in handles:
            await handle.result(30)
        records = await ledger.client.store.get([handle.id for handle in handles])
    assert {(record.worker or "").split("@")[0] for record in records.values()} == {"stock", "ours"}
    assert set(ledger.lines("start").values()) == {1}


def poll(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.1)


async def test_flower_shows_workers_and_tasks(ledger: Ledger) -> None:
    port = free_port()
    ledger.env["FLOWER_UNAUTHENTICATED_API"] = "1"
    await asyncio.to_thread(ledger.start_worker, "-E", "-n", "ours@%h")
    flower = ledger.run("celery", "-A", "ledger", "flower", f"--port={port}", "--address=127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    await asyncio.to_thread(wait_until_up, url, flower)

    def workers() -> bool:
        return "ours@" in httpx.get(f"{url}/workers").text

    await asyncio.to_thread(poll, workers)
    async with ledger.client:
        handle = await ledger.client.enqueue("ledger.add", (2, 3))
        assert await handle.result(20) == 5

    def tasks() -> bool:
        seen = httpx.get(f"{url}/api/tasks").json()
        return bool(handle.id in seen and seen[handle.id]["state"] == "SUCCESS")

    await asyncio.to_thread(poll, tasks)
    page = (await asyncio.to_thread(httpx.get, f"{url}/task/{handle.id}")).text
    assert "ledger.add" in page
    assert re.search(r"\b5\b", page)
