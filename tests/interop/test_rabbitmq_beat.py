"""Two ``celery beat`` processes with RabbitMQ send each run once: the file of the records tells which one leads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.ledger import Ledger
from tests.acceptance.processes import Launcher

from celeriac.brokers.urls import load_driver
from celeriac.testing.contract.messages import acknowledged, collect

load_driver("amqp://")


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.clean_up()


@pytest.mark.timeout(120)
async def test_one_of_two_beats_leads_and_the_other_takes_over(
    rabbitmq_url: str, tmp_path: Path, launcher: Launcher
) -> None:
    conf = {
        "beat_schedule": {"tick": {"task": "ledger.work", "schedule": 1.0}},
        "celeriac_beat_lease": 1.5,
        "result_backend": f"sqlite:///{tmp_path / 'ledger' / 'celery.db'}",
    }
    ledger = Ledger(tmp_path / "ledger", launcher, url=rabbitmq_url, conf=conf)
    leader, waiting = (ledger.run("celery", "-A", "ledger", "beat", "--loglevel=info") for _ in range(2))
    async with ledger.client as client:

        async def runs(count: int) -> float:
            """Seconds in which so many runs were sent; the first is there already."""
            first = None
            for _ in range(count):
                assert not await client.broker.settle(
                    acknowledged(await collect(client.broker, 1, ["celery"]))
                )
                first = first or time.monotonic()
            return time.monotonic() - (first or 0.0)

        assert await runs(4) > 2.5  # half of that if both sent
        await asyncio.to_thread(leader.kill)
        assert await runs(3) > 1.5
        await asyncio.to_thread(waiting.kill)
