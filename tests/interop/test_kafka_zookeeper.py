"""Kafka and ZooKeeper shared with stock Celery, in both directions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from tests.acceptance.ledger import Ledger, until
from tests.acceptance.processes import Launcher

STOCK = """
import json
from celery import Celery

app = Celery("stock", broker={url!r})
app.conf.update(
    task_default_queue={queue!r}, broker_transport_options={options!r}, worker_enable_remote_control=False
)

@app.task(name="stock.note", bind=True)
def note(self, value):
    with open("notes.jsonl", "a") as file:
        file.write(json.dumps([value, self.request.id]) + "\\n")
"""

#: A member of a group that is gone is missed after two seconds.
QUICK = {"kafka_consumer_config": {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}}


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.clean_up()


@pytest.fixture(params=["kafka", "zookeeper"])
def conf(request: pytest.FixtureRequest, kafka_queue: str) -> dict[str, Any]:
    """Celery's settings for a queue that the test has to itself."""
    if request.param == "kafka":
        url, options = request.getfixturevalue("kafka").url, QUICK
    else:
        url, options = request.getfixturevalue("zookeeper_url"), {}
    return {"broker_url": url, "broker_transport_options": options, "task_default_queue": kafka_queue}


@pytest.fixture
def ledger(conf: dict[str, Any], tmp_path: Path, launcher: Launcher) -> Ledger:
    folder = tmp_path / "ledger-app"
    settings = {key: value for key, value in conf.items() if key != "broker_url"}
    settings["result_backend"] = f"sqlite:///{folder / 'celery.db'}"
    return Ledger(folder, launcher, url=conf["broker_url"], conf=settings)


async def test_a_stock_worker_runs_what_we_enqueue(
    ledger: Ledger, conf: dict[str, Any], tmp_path: Path
) -> None:
    source = STOCK.format(
        url=conf["broker_url"], queue=conf["task_default_queue"], options=conf["broker_transport_options"]
    )
    (tmp_path / "stock.py").write_text(source)
    options = ("-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat")
    async with ledger.client as client:
        now = await client.enqueue("stock.note", (1,))
        later = await client.enqueue("stock.note", (2,), countdown=1)
        ledger.launcher.start(("celery", "-A", "stock", "worker", *options), cwd=tmp_path, env={})
        notes = tmp_path / "notes.jsonl"
        await until(lambda: notes.exists() and notes.read_text().count("\n") == 2)
    # Partitions have no order among them.
    assert sorted(json.loads(line) for line in notes.read_text().splitlines()) == [[1, now.id], [2, later.id]]


async def test_our_worker_runs_what_a_stock_client_sends(ledger: Ledger, conf: dict[str, Any]) -> None:
    stock = celery.Celery("stock", set_as_current=False)
    stock.conf.update(conf)
    with stock.connection_for_write() as connection:
        sent = [
            await asyncio.to_thread(
                stock.send_task, "ledger.work", connection=connection, countdown=countdown
            )
            for countdown in (None, 1)
        ]
        if conf["broker_url"].startswith("zookeeper:"):  # kombu leaves the session open
            connection.default_channel.client.stop()
    worker = await asyncio.to_thread(ledger.start_worker, "-c", "2")
    await until(lambda: all(ledger.lines("end")[task.id] == 1 for task in sent))
    await asyncio.to_thread(worker.terminate)
    assert await asyncio.to_thread(worker.wait) == 0
    assert all(ledger.lines("start")[task.id] == 1 for task in sent)
