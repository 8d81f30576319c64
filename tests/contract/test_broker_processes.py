"""Several processes on one SQLite file or Redis server: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
import redis

from celeriac.brokers.urls import broker_for
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication

_SCRIPT = str(Path(__file__).with_name("broker_process.py"))


@pytest.fixture(params=["sqlite", "redis"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """A broker that is empty."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("database_url"))
    url = str(request.getfixturevalue("redis_url"))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


async def _start(*arguments: object) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, _SCRIPT, *map(str, arguments), stdout=PIPE, stderr=PIPE, limit=2**24
    )


async def _output(process: Process) -> list[str]:
    stdout, stderr = await process.communicate()
    assert (process.returncode, stderr.decode()) == (0, "")
    return stdout.decode().split()


async def test_nothing_is_lost_and_nothing_comes_twice(broker_url: str) -> None:
    publishers, consumers, count = 3, 3, 1000
    consuming = [await _start("consume", broker_url, "q", 60) for _ in range(consumers)]
    publishing = [await _start("publish", broker_url, "q", n, count) for n in range(publishers)]
    assert [await _output(process) for process in publishing] == [["done"]] * publishers
    broker = broker_for(broker_url)
    await broker.open()

    await broker.publish([publication("stop", "q") for _ in range(consumers)])

    seen = [name for process in consuming for name in await _output(process)]
    assert sorted(seen) == sorted(f"{n}-{m}" for n in range(publishers) for m in range(count))
    received = await broker.receive(["q"], 1)
    assert (received.deliveries, received.next_due) == ([], None)
    await broker.close()


async def test_a_killed_consumers_messages_come_back(broker_url: str) -> None:
    broker = broker_for(broker_url)
    await broker.open()
    await broker.publish([publication(str(n), "q") for n in range(30)])
    process = await _start("hold", broker_url, "q", 1.0, 20)
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


async def test_consumers_killed_at_any_moment_lose_nothing(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    broker, count = broker_for(redis_url, lease=1.0), 20_000
    await broker.open()
    await broker.publish([publication(str(n), "q") for n in range(count)])
    seen: list[str] = []
    for n in range(6):
        process = await _start("consume", redis_url, "q", 1.0)
        assert process.stdout is not None
        await process.stdout.readline()
        await asyncio.sleep(0.01 * n)
        process.kill()
        seen += (await process.communicate())[0].decode().split()

    # What was settled and not told is all that may be missing; what was told never comes again.
    rest: list[str] = []
    killed = time.monotonic()
    while time.monotonic() < killed + 1.5:
        deliveries = (await broker.receive(["q"], 1000)).deliveries
        rest += [name_of(delivery) for delivery in deliveries]
        await broker.settle(acknowledged(deliveries))
        if not deliveries:
            await broker.wait(["q"], timeout=0.5)
    await broker.close()

    assert not set(seen) & set(rest)
    assert len(rest) == len(set(rest))
    assert (
        count - len(seen) - len(rest) <= 6 * 24
    )  # one batch and the line that was read, for each that was killed
