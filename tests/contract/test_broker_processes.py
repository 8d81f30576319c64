"""Several processes on one SQLite file: nothing is lost, nothing comes twice, nobody hears that it is locked."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from celeriac.brokers.urls import broker_for
from celeriac.testing.contract.messages import collect, name_of, publication

_SCRIPT = str(Path(__file__).with_name("broker_process.py"))


async def _start(*arguments: object) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, _SCRIPT, *map(str, arguments), stdout=PIPE, stderr=PIPE, limit=2**24
    )


async def _output(process: Process) -> list[str]:
    stdout, stderr = await process.communicate()
    assert (process.returncode, stderr.decode()) == (0, "")
    return stdout.decode().split()


async def test_nothing_is_lost_and_nothing_comes_twice(database_url: str) -> None:
    publishers, consumers, count = 3, 3, 1000
    consuming = [await _start("consume", database_url, "q", 60) for _ in range(consumers)]
    publishing = [await _start("publish", database_url, "q", n, count) for n in range(publishers)]
    assert [await _output(process) for process in publishing] == [["done"]] * publishers
    broker = broker_for(database_url)
    await broker.open()

    await broker.publish([publication("stop", "q") for _ in range(consumers)])

    seen = [name for process in consuming for name in await _output(process)]
    assert sorted(seen) == sorted(f"{n}-{m}" for n in range(publishers) for m in range(count))
    received = await broker.receive(["q"], 1)
    assert (received.deliveries, received.next_due) == ([], None)
    await broker.close()


async def test_a_killed_consumers_messages_come_back(database_url: str) -> None:
    broker = broker_for(database_url)
    await broker.open()
    await broker.publish([publication(str(n), "q") for n in range(30)])
    process = await _start("hold", database_url, "q", 1.0, 20)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"holding\n"
    first = await collect(broker, 10, ["q"])
    assert {delivery.deliveries for delivery in first} == {1}

    process.kill()
    killed = time.monotonic()
    await process.wait()

    again = await collect(broker, 20, ["q"])
    assert time.monotonic() - killed < 10
    assert {delivery.deliveries for delivery in again} == {2}
    assert sorted(int(name_of(delivery)) for delivery in [*first, *again]) == list(range(30))
    await broker.close()
