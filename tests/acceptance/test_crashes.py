"""Workers that are killed, and workers that are told to stop: nothing is lost, and nothing runs twice for it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import pytest
from tests.acceptance.ledger import Ledger, until, wait_until_nothing_is_held
from tests.acceptance.processes import Launcher
from tests.services import RedisServer

from celeriac.errors import TaskRevoked

MakeLedger = Callable[..., Ledger]


@pytest.fixture(params=["sqlite", "redis"])
def make_ledger(request: pytest.FixtureRequest, tmp_path: Path, launcher: Launcher) -> Iterator[MakeLedger]:
    """Makes a ledger with these settings; in Redis nothing may be left under a lease when all is done."""
    server: RedisServer | None = None
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
    url = server.url if server else None
    yield lambda **conf: Ledger(tmp_path / "ledger-app", launcher, url=url, conf=conf)
    if server is not None:
        wait_until_nothing_is_held(server)


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


async def test_after_sigkill_every_running_task_runs_again_and_finishes(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
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


async def test_sigterm_finishes_what_runs_and_leaves_the_rest_to_the_next_worker(
    make_ledger: MakeLedger,
) -> None:
    ledger = make_ledger()
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


async def test_what_does_not_finish_in_the_grace_period_is_handed_back(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(celeriac_shutdown_grace=0.2, celeriac_lease=300)
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


async def test_two_workers_share_the_work(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    for name in ("one", "two"):
        await asyncio.to_thread(ledger.start_worker, "-c", "5", "-n", f"{name}@%h")
    async with ledger.client:
        ids = await enqueue(ledger, 300, 0.02)
        await finish_all(ledger, ids)
        records = await ledger.client.store.get(ids)
    workers = {(record.worker or "").split("@")[0] for record in records.values()}
    assert workers == {"one", "two"}
    assert set(ledger.lines("start").values()) == {1}


async def test_a_task_that_kills_its_worker_ends_as_a_dead_letter(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(celeriac_lease=0.5, celeriac_delivery_limit=3)
    async with ledger.client:
        handle = await ledger.client.enqueue("ledger.kill_worker")
        for _ in range(3):
            worker = await asyncio.to_thread(ledger.start_worker)
            assert await asyncio.to_thread(worker.wait) == -signal.SIGKILL
        await asyncio.to_thread(ledger.start_worker)
        with pytest.raises(Exception, match="delivered 3 times without an outcome"):
            await handle.result(30)
        await until_async(ledger.client.broker.dead_letters, 1)
        letters = await ledger.client.broker.dead_letters()
        assert [letter.task_id for letter in letters] == [handle.id]
        assert ledger.lines("start")[handle.id] == 3


async def test_long_tasks_keep_their_leases_even_while_the_loop_is_blocked(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(celeriac_lease=0.5)
    for name in ("one", "two"):
        await asyncio.to_thread(ledger.start_worker, "-n", f"{name}@%h")
    async with ledger.client:
        ids = await enqueue(ledger, 2, 3.0)
        ids += await enqueue(ledger, 1, 3.0, "ledger.block_loop")
        await finish_all(ledger, ids)
    assert set(ledger.lines("start").values()) == {1}


async def test_a_worker_that_was_stopped_does_not_start_what_somebody_else_has_by_now(
    make_ledger: MakeLedger,
) -> None:
    ledger = make_ledger(celeriac_lease=1.0, task_annotations={"ledger.work": {"rate_limit": "30/m"}})
    stopped = await asyncio.to_thread(ledger.start_worker, "-n", "one@%h")
    async with ledger.client:
        ids = await enqueue(ledger, 2, 0.1)  # one starts, the other may start two seconds later
        await finish_all(ledger, list(await started(ledger, 1)))
        async with asyncio.timeout(1):
            while await ledger.client.queue_size("celery"):
                await asyncio.sleep(0.02)
        ledger.stop_between_writes(stopped)
        may_start = time.monotonic() + 2.0
        await asyncio.to_thread(ledger.start_worker, "-n", "two@%h")
        await finish_all(ledger, ids)
        await until(lambda: time.monotonic() > may_start)
        stopped.signal(signal.SIGCONT)
        await asyncio.to_thread(stopped.wait_for_line, "left to another worker")
        stopped.terminate()
        assert await asyncio.to_thread(stopped.wait) == 0
    assert set(ledger.lines("start").values()) == {1}


async def started(ledger: Ledger, count: int) -> Iterable[str]:
    """The tasks that have started, once there are so many."""
    await until(lambda: len(ledger.lines("start")) == count)
    return ledger.lines("start")


async def test_a_task_that_waits_for_several_leases_runs_once(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(celeriac_lease=0.5)
    for name in ("one", "two"):
        await asyncio.to_thread(ledger.start_worker, "-n", f"{name}@%h")
    async with ledger.client:
        before = time.time()
        handle = await ledger.client.enqueue("ledger.work", countdown=2)
        assert await handle.result(20) == handle.id
        assert 2 <= time.time() - before < 3
    assert ledger.lines("start") == {handle.id: 1}
    assert ledger.lines("end") == {handle.id: 1}


async def test_a_delayed_task_is_cancelled_while_no_worker_is_there(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    async with ledger.client:
        cancelled = await ledger.client.enqueue("ledger.work", countdown=0.5)
        other = await ledger.client.enqueue("ledger.work", countdown=0.5)
        assert await cancelled.cancel()
        await asyncio.to_thread(ledger.start_worker)
        assert await other.result(20) == other.id
        with pytest.raises(TaskRevoked):
            await cancelled.result(20)
    assert ledger.lines("start") == {other.id: 1}


async def test_one_slot_takes_higher_priorities_first(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    async with ledger.client:
        handles = {
            priority: await ledger.client.enqueue("ledger.work", priority=priority)
            for priority in (3, 0, 9, 6)
        }
        await asyncio.to_thread(ledger.start_worker, "-c", "1")
        await finish_all(ledger, [handle.id for handle in handles.values()])
        records = await ledger.client.store.get([handle.id for handle in handles.values()])
    by_start = sorted(handles, key=lambda priority: records[handles[priority].id].started_at)
    assert by_start == [9, 6, 3, 0]


async def test_a_damaged_database_stops_the_worker_with_one_sentence(
    tmp_path: Path, launcher: Launcher
) -> None:
    ledger = Ledger(tmp_path / "ledger-app", launcher)
    (ledger.folder / "celery.db").write_bytes(b"this is no database, " * 500)
    worker = ledger.run("celery", "-A", "ledger", "worker", "--loglevel=info")
    assert await asyncio.to_thread(worker.wait) != 0
    assert "damaged or no SQLite database" in worker.output
    assert "Traceback" not in worker.output


def publish_malformed_messages(ledger: Ledger) -> None:
    with ledger.client.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish("not a task", routing_key="celery", serializer="json")
        producer.publish(
            b"\x80\x04N.",
            routing_key="celery",
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"id": "pickled", "task": "ledger.add"},
        )


async def test_malformed_messages_are_dead_lettered_and_the_worker_goes_on(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    worker = await asyncio.to_thread(ledger.start_worker)
    async with ledger.client:
        await asyncio.to_thread(publish_malformed_messages, ledger)
        await until_async(ledger.client.broker.dead_letters, 2)
        assert await (await ledger.client.enqueue("ledger.add", (1, 2))).result(10) == 3
        assert await ledger.client.handle("pickled").state() == "FAILURE"
    assert worker.running
