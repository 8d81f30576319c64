"""RabbitMQ is away in every way in which it can be: who publishes is told in time, and everybody else recovers."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.acceptance.ledger import Ledger
from tests.acceptance.observing import failed_enqueue, measured_loop
from tests.acceptance.outages import (
    Outage,
    Witnesses,
    heal,
    kill,
    pause,
    refuse,
    resume,
    start,
    swallow,
    swallow_replies,
)
from tests.acceptance.processes import Launcher
from tests.services import Proxy, RabbitMQServer

from celeriac.errors import BrokerUnavailable, CeleriacError, PublishTimeout

#: Seconds after which ``enqueue`` has raised, in these tests.
DEADLINE = 2.0

#: Half a lease is RabbitMQ's heartbeat. After two of them it takes back what a connection held that has gone silent.
LEASE = 4.0

#: Whether to run what takes its time, and to print what was measured.
FIGURES = bool(os.environ.get("FIGURES"))

CONF = {"celeriac_publish_deadline": DEADLINE, "celeriac_lease": LEASE}


@dataclass(frozen=True)
class Site:
    """A server and the network in front of it."""

    server: RabbitMQServer
    proxy: Proxy
    url: str

    async def command(self, *words: str) -> None:
        """Have ``rabbitmqctl`` do something."""
        await asyncio.to_thread(self.server.command, *words)


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitMQServer]:
    """One for all of these tests, each of which leaves it well."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture
async def site(server: RabbitMQServer) -> AsyncIterator[Site]:
    vhost = server.new_vhost().rpartition("/")[2]
    async with Proxy(server.host, server.port) as proxy:
        yield Site(server, proxy, f"amqp://guest:guest@{proxy.host}:{proxy.port}/{vhost}")


@pytest.fixture
def ledger(site: Site, tmp_path: Path, launcher: Launcher) -> Ledger:
    ledger = Ledger(tmp_path / "ledger-app", launcher, url=site.url, conf=CONF)
    ledger.client.conf.result_backend = f"sqlite:///{ledger.folder / 'celery.db'}"
    return ledger


async def _fill_memory(site: Site) -> None:
    await site.command("set_vm_memory_high_watermark", "0")


async def _free_memory(site: Site) -> None:
    await site.command("set_vm_memory_high_watermark", "0.8")


async def _fill_disk(site: Site) -> None:
    await site.command("set_disk_free_limit", "100000GB")


async def _free_disk(site: Site) -> None:
    await site.command("set_disk_free_limit", "10MB")


@dataclass(frozen=True)
class RabbitMQOutage(Outage[Site]):
    """What can happen to RabbitMQ."""

    #: Whether connections break, and the first enqueue may still use one of them.
    cuts: bool = field(default=False, kw_only=True)
    #: What the error is: nobody may be told that a task is not enqueued which the server reads once it goes on.
    raises: type[CeleriacError] = field(kw_only=True)


_GONE = "RabbitMQ at .* cannot be reached"
#: Three and a half seconds after the last word the connection is given up, and who waits for it hears of it at once.
_SILENT = (
    r"The broker did not confirm(?: within 2 seconds|: RabbitMQ at \S+ has fallen silent, and the connection to it was "
    r"given up); the task may or may not have been enqueued\."
)

OUTAGES = (
    RabbitMQOutage("refused", refuse, heal, raises=BrokerUnavailable, says=_GONE, cuts=True),
    # Longer than the server waits for a connection that has gone silent.
    RabbitMQOutage("swallowed", swallow, heal, raises=PublishTimeout, says=_SILENT, lasts=2 * LEASE),
    RabbitMQOutage("paused", pause, resume, raises=PublishTimeout, says=_SILENT),
)

#: For who wants to know: much the same to a client as those above, or RabbitMQ takes its time to start.
SLOW_OUTAGES = (
    RabbitMQOutage("half open", swallow_replies, heal, raises=PublishTimeout, says=_SILENT, lasts=2 * LEASE),
    RabbitMQOutage("out of memory", _fill_memory, _free_memory, raises=PublishTimeout, says=_SILENT),
    RabbitMQOutage("out of disk", _fill_disk, _free_disk, raises=PublishTimeout, says=_SILENT),
    RabbitMQOutage("killed", kill, start, raises=BrokerUnavailable, says=_GONE, cuts=True),
    RabbitMQOutage("silent for a minute", pause, resume, raises=PublishTimeout, says=_SILENT, lasts=60),
)


def _is_cut(kind: type[BaseException], sentence: str) -> bool:
    """Whether it is told that nobody knows if the task was sent before its connection broke."""
    told = r"The broker did not confirm: RabbitMQ at .*; the task may or may not have been enqueued\."
    return kind is PublishTimeout and re.fullmatch(told, sentence) is not None


@pytest.mark.timeout(240)
@pytest.mark.parametrize("outage", OUTAGES + (SLOW_OUTAGES if FIGURES else ()), ids=str)
async def test_who_publishes_is_told_and_everybody_recovers(
    outage: RabbitMQOutage, site: Site, ledger: Ledger
) -> None:
    client = ledger.client
    async with Witnesses.of(ledger, "-c", "20") as witnesses:
        handles = await client.enqueue_many([client.signature("ledger.work", (0.01,)) for _ in range(100)])

        await outage.begin(site)
        over = time.monotonic() + outage.lasts
        async with measured_loop() as latency:
            failures = [await failed_enqueue(client)]
            failures += await asyncio.gather(*(failed_enqueue(client) for _ in range(50)))
        # What the store has is to be had meanwhile.
        answers = await witnesses.api.answers((await handles[0].record()).id)
        witnesses.open_door()
        await asyncio.sleep(max(0.0, over - time.monotonic()))
        await outage.end(site)

        await witnesses.recover(handles[1:], within=40)
        if FIGURES:
            print(outage, answers, max(latency.computed), witnesses.clock.seconds)  # noqa: T201
    first, *others = [(type(error), str(error)) for error, _ in failures]
    assert {kind for kind, _ in others} == {outage.raises}, others
    assert all(re.match(outage.says, sentence) for _, sentence in others), set(others)
    assert (first[0] is outage.raises and re.match(outage.says, first[1])) or (
        outage.cuts and _is_cut(*first)
    ), first
    assert max(seconds for _, seconds in failures) < DEADLINE + 0.25
    assert max(latency.computed) < 0.05
    assert answers.pop("enqueue")[0] == 503
    assert {status for status, _ in answers.values()} <= {200, 202, 409}
    witnesses.assert_recovered()
