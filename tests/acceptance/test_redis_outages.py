"""Redis is away in every way in which it can be: who publishes is told in time, and everybody else recovers."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from tests.acceptance.ledger import Ledger, wait_until_nothing_is_held
from tests.acceptance.observing import Api, enqueue_again, failed_enqueue, measured_loop
from tests.acceptance.outages import (
    OUTAGES,
    RECOVERY,
    SLOW_OUTAGES,
    RedisOutage,
    Site,
    Witnesses,
    refuse,
    swallow,
)
from tests.acceptance.processes import Launcher, Process
from tests.services import RedisSentinel, RedisServer

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, PublishTimeout

#: Seconds after which ``enqueue`` has raised, in these tests.
DEADLINE = 2.0

LEASE = 30.0

CONF = {"celeriac_publish_deadline": DEADLINE, "celeriac_lease": LEASE}

#: Whether to run what takes its time, and to print what was measured.
FIGURES = bool(os.environ.get("FIGURES"))

each_outage = pytest.mark.parametrize("outage", OUTAGES, ids=str)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site.open() as site:
        yield site


@pytest.fixture
def ledger(site: Site, tmp_path: Path, launcher: Launcher) -> Ledger:
    return Ledger(tmp_path / "ledger-app", launcher, url=site.url, conf=CONF)


@each_outage
async def test_enqueue_raises_in_time_and_the_loop_goes_on(
    outage: RedisOutage, site: Site, ledger: Ledger
) -> None:
    client = ledger.client
    async with client:
        await client.enqueue("ledger.work")
        await outage.begin(site)
        async with measured_loop() as latency:
            failures = [await failed_enqueue(client)]
            failures += await asyncio.gather(*(failed_enqueue(client) for _ in range(50)))
        await outage.end(site)
        assert {type(error) for error, _ in failures} <= {BrokerUnavailable, PublishTimeout}
        assert all(re.search(outage.says, str(error)) for error, _ in failures)
        assert max(seconds for _, seconds in failures) < DEADLINE + 0.25
        assert max(latency.computed) < 0.05
        assert max(latency.passed) < 0.5
        before = time.perf_counter()
        await enqueue_again(client)
        assert time.perf_counter() - before < RECOVERY


async def test_deleting_a_record_is_within_the_deadline(site: Site, ledger: Ledger) -> None:
    with RedisServer() as results:
        client = Celery("client", broker=site.url, backend=results.url, set_as_current=False)
        client.conf.celeriac_publish_deadline = 0.8
        async with client:
            await site.proxy.refuse()
            await asyncio.to_thread(results.pause)
            for error, seconds in await asyncio.gather(*(failed_enqueue(client) for _ in range(3))):
                assert isinstance(error, BrokerUnavailable)
                assert seconds < 1
            results.resume()


# -- an API and a worker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", OUTAGES + (SLOW_OUTAGES if FIGURES else ()), ids=str)
async def test_everybody_recovers(outage: RedisOutage, site: Site, ledger: Ledger) -> None:
    client = ledger.client
    async with Witnesses.of(ledger, "-c", "20") as witnesses:
        many = [client.signature("ledger.work", (0.01,)) for _ in range(200)]
        handles = await client.enqueue_many(many)
        delayed = await client.enqueue("ledger.work", countdown=0.5)

        await outage.begin(site)
        over = time.monotonic() + outage.lasts
        witnesses.open_door()
        latencies: list[float] = []
        pinging = asyncio.create_task(witnesses.api.ping(latencies))
        answers = await witnesses.api.answers(witnesses.running.id)
        pinging.cancel()
        await asyncio.sleep(max(0.0, over - time.monotonic()))
        await outage.end(site)

        await witnesses.recover([*handles, delayed])
        if FIGURES:
            print(outage, answers, max(latencies), witnesses.clock.seconds)  # noqa: T201 - for who wants to know
        await asyncio.to_thread(wait_until_nothing_is_held, site.server)
    assert max(latencies) < 0.5
    assert max(seconds for _, seconds in answers.values()) < 11
    assert {status for status, _ in answers.values()} <= ({200, 202, 503} if outage.reads else {503})
    assert answers["enqueue"][0] == 503
    assert answers["enqueue"][1] < DEADLINE + 0.5
    if outage.lasts < LEASE:
        assert set(ledger.lines("start").values()) == {1}
    witnesses.assert_recovered()


@pytest.mark.parametrize(
    "outage", [each for each in OUTAGES if each.name in ("killed", "swallowed")], ids=str
)
async def test_a_stream_misses_and_reorders_nothing(outage: RedisOutage, site: Site, ledger: Ledger) -> None:
    _, (_, url) = await asyncio.gather(
        asyncio.to_thread(ledger.start_worker), asyncio.to_thread(ledger.start_api)
    )
    door = ledger.folder / "door"
    client, api = ledger.client, Api(url)
    async with client, api.http:
        counting = await client.enqueue("ledger.count_until", (str(door),))
        before = asyncio.create_task(api.watch(counting.id, seen := asyncio.Event()))
        await seen.wait()
        await outage.begin(site)
        during = asyncio.create_task(api.watch(counting.id))
        await asyncio.sleep(0.5)  # while the task counts
        await outage.end(site)
        after = asyncio.create_task(api.watch(counting.id, back := asyncio.Event()))
        await back.wait()
        door.touch()
        async with asyncio.timeout(20):
            streams = await asyncio.gather(before, during, after)
    for stream in streams:
        values = [told.data for told in stream if told.name == "value"]
        assert values == list(range(len(values)))
        assert len(values) > 20
    assert streams[0] == streams[1] == streams[2]


async def test_everybody_follows_a_failover(tmp_path: Path, launcher: Launcher) -> None:
    with RedisSentinel() as sentinel:
        options = {"master_name": sentinel.name}
        conf = {**CONF, "broker_transport_options": options}
        ledger = Ledger(tmp_path / "ledger-app", launcher, url=sentinel.url, conf=conf)
        async with Witnesses.of(ledger) as witnesses:
            former = sentinel.primary
            # What the replica has not been sent yet would be lost.
            await asyncio.to_thread(former.command, "WAIT", 1, 5000)
            await asyncio.to_thread(former.kill)
            error, seconds = await failed_enqueue(ledger.client)
            assert isinstance(error, (BrokerUnavailable, PublishTimeout))
            assert seconds < DEADLINE + 0.25
            assert (await witnesses.api.http.post("/work")).status_code == 503
            witnesses.open_door()
            await asyncio.to_thread(sentinel.wait_for_other_primary, former)
            await witnesses.recover()
            if FIGURES:
                print("failover", witnesses.clock.seconds)  # noqa: T201
        assert ledger.lines("start")[witnesses.running.id] == 1
        witnesses.assert_recovered()


# -- nothing is left behind, and nobody is left in the dark ----------------------------------------------------------


async def _hang_up(site: Site) -> None:
    """Connections are accepted, and closed at once."""
    await asyncio.to_thread(site.server.kill)


@pytest.mark.parametrize("trouble", [refuse, _hang_up, swallow], ids=["refused", "hung up", "swallowed"])
async def test_ten_thousand_failures_leave_nothing(
    trouble: Callable[[Site], Awaitable[None]], site: Site
) -> None:
    url = f"{site.url}?socket_timeout=0.2&socket_connect_timeout=0.2"
    client = Celery("client", broker=url, set_as_current=False)
    process = psutil.Process()
    async with client:
        await client.enqueue("ledger.work")
        tasks, files = len(asyncio.all_tasks()), process.num_fds() - 2 * site.proxy.open_connections
        await trouble(site)
        for _ in range(100):
            outcomes = await asyncio.gather(
                *(client.enqueue("ledger.work", deadline=0.05) for _ in range(100)), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} <= {BrokerUnavailable, PublishTimeout}
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > tasks + 1:
                await asyncio.sleep(0.02)
        assert site.proxy.open_connections <= 1
        assert process.num_fds() - 2 * site.proxy.open_connections <= files + 1


@pytest.mark.parametrize("reply", ["refused", "wrong password"])
async def test_a_worker_that_shall_not_wait_at_startup_ends_with_one_sentence(
    reply: str, tmp_path: Path, launcher: Launcher
) -> None:
    with RedisServer(password="right") as server:
        if reply == "refused":
            server.kill()
            ledger = Ledger(
                tmp_path / "ledger-app",
                launcher,
                url=server.url,
                conf={"broker_connection_retry_on_startup": False},
            )
        else:
            ledger = Ledger(
                tmp_path / "ledger-app", launcher, url=server.url_for(password="wrong"), conf=CONF
            )
        worker = ledger.run_worker()
        assert await asyncio.to_thread(worker.wait, 15) not in (0, None)
        assert_ended_with_one_sentence(
            worker, "cannot be reached" if reply == "refused" else "does not accept the user or the password"
        )


async def test_a_worker_that_shall_not_wait_ends_with_one_sentence(site: Site, ledger: Ledger) -> None:
    ledger.conf["broker_connection_retry"] = False
    worker = await asyncio.to_thread(ledger.start_worker)
    async with ledger.client:
        # Before its first answer from Redis, it would still be starting.
        assert await (await ledger.client.enqueue("ledger.add", (1, 2))).result(20) == 3
    await asyncio.to_thread(site.server.kill)
    assert await asyncio.to_thread(worker.wait, 15) not in (0, None)
    assert_ended_with_one_sentence(worker, "cannot be reached")


def assert_ended_with_one_sentence(worker: Process, sentence: str) -> None:
    """The last that it says is why."""
    said = worker.output.partition(" ready.")[2] or worker.output
    assert len(re.findall(r"CRITICAL.*The worker stops: Redis at ", said)) == 1
    assert sentence in said
    assert "Traceback" not in worker.output


async def test_a_worker_waits_for_a_server_that_starts_later(site: Site, ledger: Ledger) -> None:
    await asyncio.to_thread(site.server.kill)
    worker = await asyncio.to_thread(ledger.run_worker)
    await asyncio.to_thread(worker.wait_for_line, "trying again")
    await asyncio.to_thread(site.server.start)
    before = time.perf_counter()
    async with ledger.client:
        assert await (await ledger.client.enqueue("ledger.add", (1, 2))).result(20) == 3
    assert time.perf_counter() - before < RECOVERY


async def test_an_api_with_a_wrong_password_answers_503(tmp_path: Path, launcher: Launcher) -> None:
    with RedisServer(password="right") as server:
        ledger = Ledger(tmp_path / "ledger-app", launcher, url=server.url_for(password="wrong"), conf=CONF)
        process, url = await asyncio.to_thread(ledger.start_api)
        api = Api(url)
        async with api.http:
            answers = await api.answers("some-id")
        assert {status for status, _ in answers.values()} == {503}
        assert "does not accept the user or the password" in process.output
        assert "Traceback" not in process.output
        assert "wrong" not in process.output.replace("wrong number", "")
