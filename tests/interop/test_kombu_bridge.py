"""kombu's SQLAlchemy and filesystem transports, shared with stock Celery, and workers of ours on them that crash."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import celery
import psutil
import pytest
import sqlalchemy as sa
from tests.acceptance.ledger import Ledger, until
from tests.acceptance.processes import Launcher

from celeriac.errors import TaskRevoked

pytestmark = pytest.mark.timeout(120)

STOCK = """
import json, time
from celery import Celery

app = Celery("stock", broker={url!r})
app.conf.update(broker_transport_options={options!r}, worker_enable_remote_control=False)

@app.task(name="stock.note", bind=True)
def note(self, value, due=0.0):
    with open("notes.jsonl", "a") as file:
        file.write(json.dumps([value, time.time(), due, self.request.id]) + "\\n")
"""


@dataclass
class Transport:
    """A broker's URL, its options, those that stock Celery bears, and a way to put a text into the queue."""

    url: str
    options: dict[str, Any]
    folder: Path

    @property
    def stock_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name != "polling_interval"}

    def put(self, text: str) -> None:
        if self.url.startswith("filesystem"):
            path = self.folder / "data" / f"{round(time.monotonic() * 1000)}_{os.urandom(4).hex()}.celery.msg"
            path.write_text(text)
            os.utime(path, (0, 0))  # nobody is writing it any more
            return
        engine = sa.create_engine(self.url.removeprefix("sqla+"))
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO kombu_message (visible, payload, version, queue_id) "
                    "SELECT 1, :text, 1, id FROM kombu_queue WHERE name = 'celery'"
                ),
                {"text": text},
            )
        engine.dispose()


@pytest.fixture(params=["sqla", "filesystem"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    if request.param == "sqla":
        return Transport(f"sqla+sqlite:///{tmp_path}/broker.db", {"polling_interval": 0.1}, tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    return Transport(
        "filesystem://", {"data_folder_in": str(folder), "data_folder_out": str(folder)}, tmp_path
    )


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.clean_up()


def ledger_on(transport: Transport, launcher: Launcher, name: str = "ledger-app", **conf: Any) -> Ledger:
    folder = transport.folder / name
    conf = {
        "broker_transport_options": transport.options,
        "result_backend": f"sqlite:///{folder / 'celery.db'}",
        "celeriac_lease": 2.0,
        **conf,
    }
    return Ledger(folder, launcher, url=transport.url, conf=conf)


@pytest.fixture
def ledger(transport: Transport, launcher: Launcher) -> Ledger:
    return ledger_on(transport, launcher)


async def test_a_stock_worker_runs_what_we_enqueue(
    ledger: Ledger, transport: Transport, tmp_path: Path
) -> None:
    source = STOCK.format(url=transport.url, options=transport.stock_options)
    (tmp_path / "stock.py").write_text(source)
    due = time.time() + 2
    async with ledger.client as client:
        await client.enqueue("stock.note", (1,))
        # No worker of ours is there: the API itself puts it into the transport when it is due.
        await client.enqueue("stock.note", (2, due), countdown=2)
        await asyncio.to_thread(client.send_task, "stock.note", (3,))
        worker = ledger.launcher.start(
            ("celery", "-A", "stock", "worker", "-P", "solo", "--without-gossip", "--loglevel=info"),
            cwd=tmp_path,
            env={},
        )
        notes = tmp_path / "notes.jsonl"
        await until(lambda: notes.exists() and notes.read_text().count("\n") == 3)
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert {value for value, *_ in lines} == {1, 2, 3}
    assert all(at >= due for _, at, due, _ in lines)
    await asyncio.to_thread(worker.terminate)


async def test_our_worker_runs_what_a_stock_client_sends(ledger: Ledger, transport: Transport) -> None:
    stock = celery.Celery("stock", broker=transport.url, set_as_current=False)
    stock.conf.broker_transport_options = transport.stock_options
    later = await asyncio.to_thread(stock.send_task, "ledger.work", countdown=8)
    due = time.time() + 7.5
    now = await asyncio.to_thread(stock.send_task, "ledger.work")
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "1")
    # What has an eta came first, and takes no slot; nor is it lost with the worker that has seen it.
    await until(lambda: ledger.lines("end")[now.id] == 1)
    worker.kill()
    await asyncio.to_thread(worker.wait)
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "1")
    await until(lambda: ledger.lines("start")[later.id] == 1)
    assert time.time() >= due
    await until(lambda: ledger.lines("end")[later.id] == 1)
    await asyncio.to_thread(worker.terminate)
    assert await asyncio.to_thread(worker.wait) == 0


async def test_what_is_no_message_is_dead_lettered_and_hurts_nobody(
    ledger: Ledger, transport: Transport
) -> None:
    async with ledger.client as client:
        first = await client.enqueue("ledger.work")
        for text in ("{ no JSON", "", '{"body": 5}', "[]", json.dumps({"properties": {}, "headers": 3})):
            await asyncio.to_thread(transport.put, text)
        last = await client.enqueue("ledger.work")
        assert await client.queue_size("celery") == 7

        worker = await asyncio.to_thread(ledger.start_worker, "-c", "2")
        assert await first.result(timeout=20) == first.id
        assert await last.result(timeout=20) == last.id
        async with asyncio.timeout(20):
            while len(letters := await client.dead_letters()) < 5:
                await asyncio.sleep(0.05)
        assert {bytes(letter.envelope) for letter in letters} >= {b"{ no JSON", b"", b"[]"}  # type: ignore[arg-type]
        assert {letter.queue for letter in letters} == {"celery"}
        assert worker.running


async def test_two_apps_on_one_keeper_do_not_mix(
    transport: Transport, launcher: Launcher, tmp_path: Path
) -> None:
    other = Transport(
        transport.url.replace("broker.db", "other.db"),
        {**transport.options, "data_folder_in": f"{tmp_path}/other", "data_folder_out": f"{tmp_path}/other"}
        if transport.url.startswith("filesystem")
        else transport.options,
        tmp_path,
    )
    kept = f"sqlite:///{tmp_path}/kept.db"
    one, two = (
        ledger_on(each, launcher, name, result_backend=kept)
        for each, name in ((transport, "one"), (other, "two"))
    )
    async with one.client as first, two.client as second:
        await first.enqueue("ledger.work", countdown=100)
        await second.enqueue("ledger.work")
        assert await first.purge("celery") == 1
        assert await second.queue_size("celery") == 1
        worker = await asyncio.to_thread(one.start_worker, "-c", "2")
        handle = await first.enqueue("ledger.work")
        assert await handle.result(timeout=20) == handle.id
        assert await second.queue_size("celery") == 1
        assert worker.running


async def test_workers_with_keepers_of_their_own_share_the_work(
    transport: Transport, launcher: Launcher
) -> None:
    one, two = (ledger_on(transport, launcher, name) for name in ("one", "two"))
    workers = [await asyncio.to_thread(each.start_worker, "-c", "2") for each in (one, two)]
    async with one.client as client:
        handles = [await client.enqueue("ledger.work", kwargs={"seconds": 0.1}) for _ in range(40)]
        ids = {handle.id for handle in handles}
        await until(lambda: set(one.lines("end")) | set(two.lines("end")) == ids)
    assert min(len(one.lines("end")), len(two.lines("end"))) >= 5
    assert not set(one.lines("start")) & set(two.lines("start"))
    assert all(worker.running for worker in workers)


async def test_an_idle_worker_rests_and_still_wakes(ledger: Ledger) -> None:
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "4")
    process = psutil.Process(worker.pid)
    async with ledger.client as client:
        handle = await client.enqueue("ledger.work")
        assert await handle.result(timeout=20) == handle.id
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(3)  # what is measured
        assert sum(process.cpu_times()[:2]) - before < 0.45
        handle = await client.enqueue("ledger.work")
        assert await handle.result(timeout=5) == handle.id


async def test_nothing_is_lost_with_the_worker_that_is_killed(ledger: Ledger) -> None:
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "4")
    async with ledger.client as client:
        handles = [await client.enqueue("ledger.work", kwargs={"seconds": 0.05}) for _ in range(80)]
        ids = {handle.id for handle in handles}
        for ended in (5, 30, 50):
            await until(lambda ended=ended: len(ledger.lines("end")) >= ended)  # type: ignore[misc]
            worker.kill()
            await asyncio.to_thread(worker.wait)
            worker = await asyncio.to_thread(ledger.start_worker, "-c", "4")
        await until(lambda: set(ledger.lines("end")) == ids)
        # At most what was in its hands began again.
        assert ledger.lines("start").total() <= 80 + 3 * 16


async def test_remote_control_says_what_it_can(ledger: Ledger, transport: Transport) -> None:
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "2")
    ping = ledger.run("celery", "-A", "ledger", "inspect", "ping", "--timeout=4")
    code = await asyncio.to_thread(ping.wait, 60)
    if transport.url.startswith("filesystem"):
        assert "pong" in ping.output
        assert code == 0
    else:
        assert "cannot broadcast, so inspect and control reach no worker" in ping.output
        assert code != 0
    async with ledger.client as client:
        handle = await client.enqueue("ledger.work", kwargs={"seconds": 30})
        await until(lambda: ledger.lines("start")[handle.id] == 1)
        await asyncio.to_thread(client.control.revoke, handle.id, terminate=True)
        with pytest.raises(TaskRevoked):
            await handle.result(timeout=10)
    assert worker.running


async def test_a_new_folder_is_no_trouble(tmp_path: Path, launcher: Launcher) -> None:
    ledger = Ledger(tmp_path / "ledger-app", launcher, url="filesystem://")
    ping = ledger.run("celery", "-A", "ledger", "inspect", "ping", "--timeout=0.1")
    await asyncio.to_thread(ping.wait, 60)
    assert "No nodes replied" in ping.output
    shutil.rmtree(ledger.folder / "data_out")

    worker = await asyncio.to_thread(ledger.start_worker)
    assert "no connection to the broker" not in worker.output
