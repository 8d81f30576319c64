"""RabbitMQ shared with stock Celery, and workers of ours on it that crash or lose it."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import aiormq
import celery
import pytest
from pamqp import commands as spec
from tests.acceptance.ledger import Ledger, until
from tests.acceptance.processes import Launcher
from tests.services import Proxy, RabbitMQServer

from celeriac.brokers.urls import broker_for, load_driver

load_driver("amqp://")

STOCK = """
import json, time
from celery import Celery

app = Celery("stock", broker={url!r})
app.conf.update(task_default_queue_type={kind!r}, worker_enable_remote_control=False)

@app.task(name="stock.note", bind=True)
def note(self, value, due=0.0):
    with open("notes.jsonl", "a") as file:
        file.write(json.dumps([value, time.time(), due, self.request.id]) + "\\n")
"""


@pytest.fixture
def launcher() -> object:
    launcher = Launcher()
    yield launcher
    launcher.clean_up()


@pytest.fixture(params=["quorum", "classic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ledger(rabbitmq_url: str, kind: str, tmp_path: Path, launcher: Launcher) -> Ledger:
    return ledger_on(rabbitmq_url, tmp_path, launcher, kind)


def ledger_on(
    url: str, folder: Path, launcher: Launcher, kind: str = "quorum", deadline: float = 10.0
) -> Ledger:
    conf = {
        "result_backend": f"sqlite:///{folder / 'ledger-app' / 'celery.db'}",
        "task_default_queue_type": kind,
        "task_create_missing_queue_type": kind,
        "celeriac_publish_deadline": deadline,
    }
    return Ledger(folder / "ledger-app", launcher, url=url, conf=conf)


async def test_a_stock_worker_runs_what_we_enqueue(
    ledger: Ledger, rabbitmq_url: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "stock.py").write_text(STOCK.format(url=rabbitmq_url, kind=kind))
    command = (
        "celery",
        "-A",
        "stock",
        "worker",
        "-P",
        "solo",
        "--without-gossip",
        "--without-mingle",
        "--loglevel=info",
    )
    worker = ledger.launcher.start(command, cwd=tmp_path, env={})
    due = time.time() + 3
    async with ledger.client as client:
        await client.enqueue("stock.note", (1,))
        await client.enqueue("stock.note", (2, due), countdown=3)
        await client.enqueue("stock.note", (3,), priority=5)
    notes = tmp_path / "notes.jsonl"
    await until(lambda: notes.exists() and notes.read_text().count("\n") == 3)
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert {value for value, *_ in lines} == {1, 2, 3}
    assert all(at >= due for _, at, due, _ in lines)
    await asyncio.to_thread(worker.terminate)


async def test_our_worker_runs_what_a_stock_client_sends(
    ledger: Ledger, rabbitmq_url: str, kind: str
) -> None:
    stock = celery.Celery("stock", broker=rabbitmq_url, set_as_current=False)
    stock.conf.task_default_queue_type = kind
    now = await asyncio.to_thread(stock.send_task, "ledger.work")
    later = await asyncio.to_thread(stock.send_task, "ledger.work", countdown=4)
    due = time.time() + 3.5
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "4")
    await until(lambda: ledger.lines("end")[now.id] == 1)
    await until(lambda: ledger.lines("end")[later.id] == 1)
    assert time.time() >= due
    replies = await asyncio.to_thread(lambda: ledger.client.control.inspect(timeout=5).ping())
    assert [*replies.values()] == [{"ok": "pong"}]
    await asyncio.to_thread(worker.terminate)
    assert await asyncio.to_thread(worker.wait) == 0


async def test_a_task_that_kills_its_worker_ends_among_the_dead_letters(ledger: Ledger) -> None:
    async with ledger.client as client:
        handle = await client.enqueue("ledger.kill_worker")
        for _ in range(5):
            worker = await asyncio.to_thread(ledger.start_worker, "-c", "2")
            await asyncio.to_thread(worker.wait)
        last = await asyncio.to_thread(ledger.start_worker, "-c", "2")
        async with asyncio.timeout(20):
            while not (letters := await client.broker.dead_letters()):
                await asyncio.sleep(0.05)
        assert (await handle.record()).state == "FAILURE"
        (letter,) = letters
        assert (letter.task_id, letter.queue, letter.task) == (handle.id, "celery", "ledger.kill_worker")
        assert ledger.lines("start")[handle.id] == 5
        assert await client.broker.replay([letter.id]) == 1
        await asyncio.to_thread(last.wait)
        assert ledger.lines("start")[handle.id] == 6


async def test_topics_and_queues_of_the_settings(
    rabbitmq_url: str, tmp_path: Path, launcher: Launcher
) -> None:
    from kombu import Exchange, Queue

    ledger = ledger_on(rabbitmq_url, tmp_path, launcher)
    media = Exchange("media", type="topic")
    ledger.client.conf.task_queues = [
        Queue("videos", media, routing_key="media.video.#", queue_arguments={"x-max-priority": 9}),
        Queue("all", media, routing_key="media.#", queue_arguments={"x-queue-type": "quorum"}),
    ]
    async with ledger.client as client:
        await client.enqueue("ledger.work", exchange="media", routing_key="media.video.short")
        await client.enqueue("ledger.work", exchange="media", routing_key="media.image")
        await client.enqueue("ledger.work", queue="videos", priority=9)
        async with asyncio.timeout(10):
            while (await client.queue_size("videos"), await client.queue_size("all")) != (
                2,
                3,
            ):  # as Celery has it, "queue" is an exchange and a key
                await asyncio.sleep(0.05)
        broker = client.broker
        first, _ = (await broker.receive(["videos"], 2)).deliveries
        assert first.envelope.properties["priority"] == 9  # type: ignore[union-attr]


async def test_what_is_no_task_is_dead_lettered_and_hurts_nobody(ledger: Ledger, rabbitmq_url: str) -> None:
    async with ledger.client as client:
        await client.enqueue("ledger.work")  # so that there is the queue
        connection = await aiormq.connect(rabbitmq_url)
        channel = await connection.channel()
        odd = {
            "id": bytearray(b"\xff"),
            "when": datetime.now(UTC),
            "price": Decimal("1.5"),
            "deep": {"a": [{"b": None}]},
        }
        for headers, body in (
            (odd, b"[]"),
            (None, b""),
            ({"id": "x", "task": "ledger.work", "lang": "py"}, b"{ no JSON"),
        ):
            properties = spec.Basic.Properties(headers=headers, content_type="application/json")
            await channel.basic_publish(body, routing_key="celery", properties=properties)
        pickled = spec.Basic.Properties(
            headers={"id": "y", "task": "ledger.work"}, content_type="application/x-python-serialize"
        )
        await channel.basic_publish(b"cos\nsystem\n(S'true'\ntR.", routing_key="celery", properties=pickled)
        await connection.close()
        handle = await client.enqueue("ledger.work")
        worker = await asyncio.to_thread(ledger.start_worker, "-c", "4")
        assert await handle.result(timeout=20) == handle.id
        async with asyncio.timeout(20):
            while len(letters := await client.broker.dead_letters()) < 4:
                await asyncio.sleep(0.05)
        assert len(letters) == 4
        assert worker.running


@pytest.mark.timeout(180)
async def test_workers_outlive_every_kind_of_outage(
    tmp_path: Path, launcher: Launcher, rabbitmq_server: RabbitMQServer
) -> None:
    async with Proxy(rabbitmq_server.host, rabbitmq_server.port) as proxy:
        url = f"amqp://guest:guest@{proxy.host}:{proxy.port}//?heartbeat=4"
        ledger = ledger_on(url, tmp_path, launcher, deadline=2.0)
        worker = await asyncio.to_thread(ledger.start_worker, "-c", "10")
        async with ledger.client as client:

            async def works(within: float) -> None:
                async with asyncio.timeout(within):
                    while True:
                        try:
                            handle = await client.enqueue("ledger.work")
                            break
                        except ConnectionError:
                            await asyncio.sleep(0.05)
                        except TimeoutError:
                            pass
                    await until(lambda: ledger.lines("end")[handle.id] == 1, within)

            await works(10)
            await proxy.refuse()
            await asyncio.sleep(0.5)
            await proxy.heal()
            await works(10)
            proxy.blackhole()
            await asyncio.sleep(1)
            await proxy.heal()
            await works(30)
            await asyncio.to_thread(rabbitmq_server.kill)
            await asyncio.to_thread(rabbitmq_server.start)
            await works(15)
            rabbitmq_server.pause()
            await asyncio.sleep(1)
            rabbitmq_server.resume()
            await works(15)
        assert worker.running
        broker = broker_for(rabbitmq_server.url)
        await broker.open()
        assert await broker.size("celery") == 0
        await broker.close()
