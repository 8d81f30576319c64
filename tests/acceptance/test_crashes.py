"""Workers that are killed, and workers that are told to stop: nothing is lost, and nothing runs twice for it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.acceptance.ledger import Ledger
from tests.acceptance.processes import Launcher


@pytest.fixture
def ledger(tmp_path: Path, launcher: Launcher) -> Ledger:
    return Ledger(tmp_path / "ledger-app", launcher)


async def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


async def until_async(fetch: Callable[[], Awaitable[object]], count: int) -> None:
    async with asyncio.timeout(30):
        while len(await fetch()) != count:  # type: ignore[arg-type]
            await asyncio.sleep(0.05)


async def finish_all(ledger: Ledger, ids: list[str], timeout: float = 60.0) -> None:
    handles = [ledger.client.handle(task_id) for task_id in ids]
    async with asyncio.timeout(timeout):
        results: list[Awaitable[str]] = [handle.result() for handle in handles]
        assert await asyncio.gather(*results) == ids


async def enqueue(ledger: Ledger, count: int, seconds: float, name: str = "ledger.work") -> list[str]:
    signatures = [ledger.client.signature(name, (seconds,)) for _ in range(count)]
    return [handle.id for handle in await ledger.client.enqueue_many(signatures)]


async def test_after_sigkill_every_running_task_runs_again_and_finishes(ledger: Ledger) -> None:
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "200")
    async with ledger.client:
        ids = await enqueue(ledger, 200, 3.0)
        await until(lambda: len(ledger.lines("start")) == 200)
        worker.kill()
        assert ledger.lines("end").total() == 0
        await asyncio.to_thread(ledger.start_worker, "-c", "200")
        await finish_all(ledger, ids)
    assert set(ledger.lines("end")) == set(ids)
    assert max(ledger.lines("end").values()) == 1
    assert set(ledger.lines("start").values()) == {2}


async def test_sigterm_finishes_what_runs_and_leaves_the_rest_to_the_next_worker(ledger: Ledger) -> None:
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "10")
    async with ledger.client:
        ids = await enqueue(ledger, 30, 0.5)
        await until(lambda: len(ledger.lines("start")) >= 10)
        worker.terminate()
        assert await asyncio.to_thread(worker.wait) == 0
        assert ledger.lines("start") == ledger.lines("end")
        assert len(ledger.lines("end")) < 30
        await asyncio.to_thread(ledger.start_worker, "-c", "10")
        await finish_all(ledger, ids)
    assert set(ledger.lines("start").values()) == {1}


async def test_what_does_not_finish_in_the_grace_period_is_handed_back(
    tmp_path: Path, launcher: Launcher
) -> None:
    ledger = Ledger(tmp_path / "app", launcher, {"LEDGER_GRACE": "0.2", "LEDGER_LEASE": "300"})
    worker = await asyncio.to_thread(ledger.start_worker)
    async with ledger.client:
        coroutines = await enqueue(ledger, 3, 4.0)
        threads = await enqueue(ledger, 1, 4.0, "ledger.work_in_thread")
        await until(lambda: len(ledger.lines("start")) == 4)
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 10) == 0
        assert await ledger.client.queue_size("celery") == 4
        await asyncio.to_thread(ledger.start_worker)
        await finish_all(ledger, coroutines + threads)


async def test_two_workers_share_one_file(ledger: Ledger) -> None:
    for name in ("one", "two"):
        await asyncio.to_thread(ledger.start_worker, "-c", "5", "-n", f"{name}@%h")
    async with ledger.client:
        ids = await enqueue(ledger, 300, 0.02)
        await finish_all(ledger, ids)
        records = await ledger.client.store.get(ids)
    workers = {(record.worker or "").split("@")[0] for record in records.values()}
    assert workers == {"one", "two"}
    assert set(ledger.lines("start").values()) == {1}


async def test_a_task_that_kills_its_worker_ends_as_a_dead_letter(tmp_path: Path, launcher: Launcher) -> None:
    ledger = Ledger(tmp_path / "app", launcher, {"LEDGER_LEASE": "0.5"})
    async with ledger.client:
        handle = await ledger.client.enqueue("ledger.kill_worker")
        for _ in range(5):
            worker = await asyncio.to_thread(ledger.start_worker)
            assert await asyncio.to_thread(worker.wait) == -signal.SIGKILL
        await asyncio.to_thread(ledger.start_worker)
        with pytest.raises(Exception, match="delivered 5 times without an outcome"):
            await handle.result(30)
        await until_async(ledger.client.broker.dead_letters, 1)
        letters = await ledger.client.broker.dead_letters()
        assert [letter.task_id for letter in letters] == [handle.id]
        assert ledger.lines("start")[handle.id] == 5


async def test_a_long_task_keeps_its_lease_even_while_the_loop_is_blocked(
    tmp_path: Path, launcher: Launcher
) -> None:
    ledger = Ledger(tmp_path / "app", launcher, {"LEDGER_LEASE": "0.5"})
    for name in ("one", "two"):
        await asyncio.to_thread(ledger.start_worker, "-n", f"{name}@%h")
    async with ledger.client:
        ids = await enqueue(ledger, 2, 3.0)
        await finish_all(ledger, ids)
    assert set(ledger.lines("start").values()) == {1}


async def test_a_damaged_database_stops_the_worker_with_one_sentence(ledger: Ledger) -> None:
    (ledger.folder / "celery.db").write_bytes(b"this is no database, " * 500)
    worker = ledger.run("celery", "-A", "ledger", "worker", "--loglevel=info")
    assert await asyncio.to_thread(worker.wait) != 0
    assert "damaged or no SQLite database" in worker.output
    assert "Traceback" not in worker.output


async def test_malformed_messages_are_dead_lettered_and_the_worker_goes_on(ledger: Ledger) -> None:
    worker = await asyncio.to_thread(ledger.start_worker)
    async with ledger.client:
        with ledger.client.connection_for_write() as connection:
            producer = connection.Producer()
            await asyncio.to_thread(producer.publish, "not a task", routing_key="celery", serializer="json")
            await asyncio.to_thread(
                producer.publish,
                b"\x80\x04N.",
                routing_key="celery",
                content_type="application/x-python-serialize",
                content_encoding="binary",
                headers={"id": "pickled", "task": "ledger.add"},
            )
        await until_async(ledger.client.broker.dead_letters, 2)
        assert await (await ledger.client.enqueue("ledger.add", (1, 2))).result(10) == 3
        assert await ledger.client.handle("pickled").state() == "FAILURE"
    assert worker.running
