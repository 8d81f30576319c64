"""SQS shared with stock Celery, and workers of ours on it that are killed or lose it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import celery
import pytest
from tests.acceptance.ledger import Ledger, until
from tests.acceptance.processes import Launcher
from tests.services import Proxy, SQSServer, missing

from celeriac.brokers.urls import load_driver

load_driver("sqs://")

STOCK = """
import json, time
from celery import Celery

app = Celery("stock", broker={url!r})
app.conf.update(worker_enable_remote_control=False, broker_transport_options={options!r})

@app.task(name="stock.note", bind=True)
def note(self, value, due=0.0):
    with open("notes.jsonl", "a") as file:
        file.write(json.dumps([value, time.time(), due]) + "\\n")
"""

#: Seconds of a lease here: how long it takes until a killed worker is missed.
LEASE = 2.0


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.clean_up()


def ledger_on(url: str, options: dict[str, Any], folder: Path, launcher: Launcher) -> Ledger:
    conf = {
        "result_backend": f"sqlite:///{folder / 'ledger-app' / 'celery.db'}",
        "broker_transport_options": options,
        "celeriac_lease": LEASE,
    }
    return Ledger(folder / "ledger-app", launcher, url=url, conf=conf)


@pytest.fixture
def ledger(sqs: SQSServer, sqs_options: dict[str, Any], tmp_path: Path, launcher: Launcher) -> Ledger:
    return ledger_on(sqs.url, sqs_options, tmp_path, launcher)


async def test_a_stock_worker_runs_what_we_enqueue(
    ledger: Ledger, sqs: SQSServer, sqs_options: dict[str, Any], tmp_path: Path
) -> None:
    if find_spec("pycurl") is None:
        missing("pycurl is not installed, which kombu's workers need for SQS")
    (tmp_path / "stock.py").write_text(STOCK.format(url=sqs.url, options=sqs_options))
    due = time.time() + 2
    async with ledger.client as client:
        await client.enqueue("stock.note", (1,))
        await client.enqueue("stock.note", (2, due), countdown=2)
    command = ("celery", "-A", "stock", "worker", "-P", "solo", "--without-gossip", "--without-mingle")
    worker = ledger.launcher.start(command, cwd=tmp_path, env={})
    notes = tmp_path / "notes.jsonl"
    await until(lambda: notes.exists() and notes.read_text().count("\n") == 2, 60)
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert {value for value, *_ in lines} == {1, 2}
    assert all(at >= due for _, at, due in lines)
    await asyncio.to_thread(worker.kill)


async def test_our_worker_runs_what_a_stock_client_sends_and_its_heir_what_it_held(
    ledger: Ledger, sqs: SQSServer, sqs_options: dict[str, Any]
) -> None:
    stock = celery.Celery("stock", broker=sqs.url, set_as_current=False)
    stock.conf.broker_transport_options = sqs_options
    gate = ledger.folder / "gate"
    now = await asyncio.to_thread(stock.send_task, "ledger.work")
    later = await asyncio.to_thread(stock.send_task, "ledger.work", countdown=5)
    due = time.time() + 4.5
    held = await asyncio.to_thread(stock.send_task, "ledger.work_until", (str(gate),))
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "4")
    await until(lambda: ledger.lines("end")[now.id] == 1)
    await until(lambda: ledger.lines("start")[held.id] == 1)
    heir = await asyncio.to_thread(ledger.start_worker, "-c", "4")

    worker.kill()
    killed = time.monotonic()
    await until(lambda: ledger.lines("start")[held.id] == 2)
    waited = time.monotonic() - killed
    gate.touch()

    await until(lambda: ledger.lines("end")[held.id] == 1)
    await until(lambda: ledger.lines("end")[later.id] == 1)
    assert time.time() >= due
    assert waited < LEASE + 2
    await asyncio.to_thread(heir.terminate)
    assert await asyncio.to_thread(heir.wait) == 0


@pytest.mark.timeout(180)
async def test_a_worker_outlives_outages_and_a_server_that_comes_back_empty(
    tmp_path: Path, launcher: Launcher
) -> None:
    with SQSServer() as server:
        async with Proxy(server.host, server.port) as proxy:
            ledger = ledger_on(server.url_at(proxy.port), server.new_options(), tmp_path, launcher)
            ledger.conf["celeriac_lease"] = 60.0
            ledger.client.conf.celeriac_lease = 60.0
            worker = await asyncio.to_thread(ledger.start_worker, "-c", "10")
            async with ledger.client as client:

                async def works() -> None:
                    async with asyncio.timeout(30):
                        while True:
                            try:
                                handle = await client.enqueue("ledger.work")
                                break
                            except (ConnectionError, TimeoutError):
                                await asyncio.sleep(0.05)
                        await until(lambda: ledger.lines("end")[handle.id] == 1)

                await works()
                await proxy.refuse()
                with pytest.raises(ConnectionError, match="SQS at"):
                    await client.enqueue("ledger.work")
                await proxy.heal()
                await works()
                gate = ledger.folder / "gate"
                handle = await client.enqueue("ledger.work_until", (str(gate),))
                await until(lambda: ledger.lines("start")[handle.id] == 1)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await works()
                gate.touch()
                await until(lambda: ledger.lines("end")[handle.id] == 1)
                assert await handle.result(timeout=20) == handle.id
                assert ledger.lines("start")[handle.id] == 1
            assert worker.running
