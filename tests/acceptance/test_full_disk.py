"""The disk of the database is full: who publishes is told at once, and everybody goes on when there is space."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI
from tests.acceptance.ledger import Ledger, until
from tests.acceptance.observing import Api, Clock, enqueue_again, failed_enqueue, measured_loop
from tests.acceptance.processes import Launcher, Process
from tests.acceptance.small_disk import Disk

from celeriac.brokers.base import Publication, Settlement
from celeriac.brokers.sql import SQLBroker
from celeriac.errors import BrokerUnavailable, CeleriacError
from celeriac.handle import TaskHandle
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action

#: Seconds after which ``enqueue`` has raised.
DEADLINE = 2.0

#: Seconds within which all is well again once there is space.
RECOVERY = 5.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk.mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def ledger(disk: Disk, tmp_path: Path, launcher: Launcher) -> Ledger:
    """Its processes have ended before the disk goes."""
    url = f"sqlite:///{disk.folder / 'celery.db'}"
    conf = {"celeriac_publish_deadline": DEADLINE, "celeriac_lease": 30.0}
    return Ledger(tmp_path / "ledger-app", launcher, url=url, conf=conf)


async def accepted_until_full(ledger: Ledger) -> list[TaskHandle[object]]:
    """What is accepted until the database has written over all the space that it has had already."""
    accepted = []
    try:
        while True:
            accepted.append(await ledger.client.enqueue("ledger.work"))
    except CeleriacError:
        return accepted


async def test_enqueue_says_that_the_disk_is_full_and_the_loop_goes_on(disk: Disk, ledger: Ledger) -> None:
    client = ledger.client
    async with client:
        await client.enqueue("ledger.work")
        disk.fill()
        accepted = await accepted_until_full(ledger)
        async with measured_loop() as latency:
            failures = [await failed_enqueue(client)]
            failures += await asyncio.gather(*(failed_enqueue(client) for _ in range(50)))
        disk.free()
        before = time.perf_counter()
        await enqueue_again(client)
        assert time.perf_counter() - before < RECOVERY
        assert await client.queue_size("celery") == len(accepted) + 2
    assert {type(error) for error, _ in failures} == {BrokerUnavailable}
    assert all(str(error).endswith("the disk is full. Free some space.") for error, _ in failures)
    assert max(seconds for _, seconds in failures) < DEADLINE
    assert max(latency.computed) < 0.05


async def test_an_api_and_a_worker_go_on_when_there_is_space(disk: Disk, ledger: Ledger) -> None:
    worker, (process, url) = await asyncio.gather(
        asyncio.to_thread(ledger.start_worker, "-c", "20"), asyncio.to_thread(ledger.start_api)
    )
    client, api, door = ledger.client, Api(url), ledger.folder / "door"
    async with client, api.http:
        running = await client.enqueue("ledger.work_until", (str(door),))
        started = asyncio.Event()
        following = asyncio.create_task(api.follow(running.id, started))
        waiting = asyncio.create_task(running.result())
        await started.wait()
        handles = await client.enqueue_many([client.signature("ledger.work", (0.01,)) for _ in range(200)])
        delayed = await client.enqueue("ledger.work", countdown=0.5)

        disk.fill()
        accepted = await accepted_until_full(ledger)
        door.touch()
        latencies: list[float] = []
        pinging = asyncio.create_task(api.ping(latencies))
        answers = await api.answers(running.id)
        refused = await api.http.post("/work")
        uncancelled = await api.http.post(f"/tasks/{delayed.id}/cancel")
        said, used = await said_and_used(worker, 4.0)
        pinging.cancel()
        disk.free()

        clock = Clock()
        async with asyncio.timeout(20):
            handle = await clock.time("enqueue", enqueue_again(client))
            rest = [*handles, *accepted, delayed]
            await asyncio.gather(
                clock.time("POST", api.enqueue_again()),
                clock.time("consume", until(lambda: ledger.lines("end")[handle.id] == 1)),
                clock.time("result", waiting),
                clock.time("stream", following),
                clock.time("new result", handle.result()),
                clock.time("rest", asyncio.gather(*(each.result() for each in rest))),
            )
        if os.environ.get("FIGURES"):
            print(said, used, max(latencies), clock.seconds)  # noqa: T201 - for who wants to know
    assert {name: status for name, (status, _) in answers.items()} == {
        "enqueue": 503,
        "list": 200,
        "record": 200,
        "result": 202,
        "events": 200,
        "cancel": 503,
    }
    assert refused.json()["detail"] == uncancelled.json()["detail"] == "The disk of the database is full."
    assert str(disk.folder) not in refused.text + uncancelled.text
    assert max(seconds for _, seconds in answers.values()) < DEADLINE + 0.5
    assert max(latencies) < 1.0
    assert said < 20
    assert used < 1.0
    assert max(clock.seconds.values()) < RECOVERY, clock.seconds
    assert following.result()[-1] == "end"
    assert set(ledger.lines("start").values()) == {1}
    assert worker.running
    assert "Traceback" not in worker.output
    assert "Traceback" not in process.output


async def test_an_endpoint_that_calls_delay_says_why_as_well(disk: Disk, ledger: Ledger) -> None:
    ledger.client.conf.task_publish_retry = False
    app = FastAPI(lifespan=ledger.client.lifespan)
    ledger.client.install(app)

    @app.post("/work")
    def post_work() -> str:
        return str(ledger.client.send_task("ledger.work", args=["x" * 100_000]).id)

    transport = httpx.ASGITransport(app)
    async with ledger.client, httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        assert (await http.post("/work")).status_code == 200
        disk.fill()
        refused = await http.post("/work")
    assert (refused.status_code, refused.json()["detail"]) == (503, "The disk of the database is full.")


async def said_and_used(worker: Process, seconds: float) -> tuple[int, float]:
    """How many lines a worker logs, and how many seconds of a processor it uses, in these seconds."""
    lines, before = worker.mark(), psutil.Process(worker.pid).cpu_times()
    await asyncio.sleep(seconds)
    after = psutil.Process(worker.pid).cpu_times()
    return worker.mark() - lines, after.user + after.system - before.user - before.system


async def test_who_begins_on_a_full_disk_is_told_so(disk: Disk, ledger: Ledger) -> None:
    async with ledger.client:
        await ledger.client.enqueue("ledger.work")
    disk.fill()
    with pytest.raises(BrokerUnavailable, match="the disk is full") as caught:
        async with ledger.client:
            await ledger.client.enqueue("ledger.work")
    assert not caught.value.permanent
    disk.free()
    async with ledger.client:
        await ledger.client.enqueue("ledger.work")
        assert await ledger.client.queue_size("celery") == 2


async def test_a_worker_that_begins_on_a_full_disk_waits_for_space(disk: Disk, ledger: Ledger) -> None:
    async with ledger.client:
        handle = await ledger.client.enqueue("ledger.add", (1, 2))
    disk.fill()
    worker = await asyncio.to_thread(ledger.run_worker)
    await asyncio.to_thread(worker.wait_for_line, r"the disk is full")
    disk.free()
    clock = Clock()
    async with ledger.client:
        assert await clock.time("result", ledger.client.handle(handle.id).result(20)) == 3
    assert clock.seconds["result"] < RECOVERY


async def test_leases_that_ended_while_the_disk_was_full_are_left_to_their_holders(
    disk: Disk, ledger: Ledger
) -> None:
    """Nobody could renew them: what runs must not start elsewhere when there is space."""
    async with ledger.client:
        await ledger.client.enqueue("ledger.work")
    broker = SQLBroker(f"sqlite:///{disk.folder / 'celery.db'}", lease=0.5)
    await broker.open()
    try:
        [held] = (await broker.receive(["celery"], 10)).deliveries
        # With this in the log, it cannot be used again: the database would have to grow first.
        await broker.publish([publication("filling", bytes(500_000), queue="other")])
        disk.fill()
        async with asyncio.timeout(10):
            await wait_until_refused(broker, [held.tag])
        await asyncio.sleep(0.6)  # longer than the lease
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                await broker.receive(["celery"], 10)
        disk.free()
        assert not (await broker.receive(["celery"], 10)).deliveries
        assert not await broker.renew([held.tag])
    finally:
        await broker.close()


async def wait_until_refused(broker: SQLBroker, tags: list[str]) -> None:
    """Renew until the database has no space left for it."""
    with contextlib.suppress(BrokerUnavailable):
        while True:
            await broker.renew(tags)


async def test_a_log_that_takes_up_the_disk_is_used_again(disk: Disk) -> None:
    """Many times as much goes through as there is space for, although never much of it is kept."""
    for rounds in (1, 300):  # after the first, the database has the space that it needs
        broker = SQLBroker(f"sqlite:///{disk.folder / 'celery.db'}")
        await broker.open()
        try:
            for number in range(rounds):
                await broker.publish([publication(str(number), bytes(100_000))])
                [delivery] = (await broker.receive(["celery"], 10)).deliveries
                await broker.settle([Settlement(delivery.tag, Action.ACKNOWLEDGE)])
        finally:
            await broker.close()


def publication(task_id: str, body: bytes, queue: str = "celery") -> Publication:
    return Publication(Message({"task": "t", "id": task_id}, {}, body), queue, task_id=task_id)
