"""What a worker does with a delivery whose lease may have ended before its task starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from celeriac import Celery
from celeriac.brokers.base import Settlement
from celeriac.brokers.memory import MemoryBroker
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.settlement import Action
from celeriac.worker import leases
from celeriac.worker.embedded import run_embedded
from celeriac.worker.execution import Execution
from celeriac.worker.service import Service


class Site:
    """A worker that holds a task, and has not started it: it waits for its rate limit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"memory://{uuid4()}"
        self.celery = Celery("leases", broker=url, backend=url, set_as_current=False)
        self.celery.conf.worker_enable_remote_control = False
        self.celery.conf.celeriac_shutdown_grace = 0.5
        self.starts: list[int] = []
        self.asked: list[str] = []
        self.slept = 0.0
        self.failures = 0
        self.service: Service
        self._monkeypatch = monkeypatch
        real = leases.elapsed
        monkeypatch.setattr(leases, "elapsed", lambda: real() + self.slept)

        @self.celery.task(rate_limit="1/h", name="limited")
        async def limited(number: int) -> int:
            self.starts.append(number)
            return number

        self._limited: Any = limited

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[Any]:
        """The handle of the task that waits."""
        async with self.celery, run_embedded(self.celery, concurrency=10) as self.service:
            await (await self._limited.enqueue(1)).result(5)
            handle = await self._limited.enqueue(2)
            await self.waits(1)
            self._listen(self.celery.broker)
            yield handle

    def _listen(self, broker: Any) -> None:
        renew = broker.renew

        async def renewed(tags: Sequence[str]) -> Collection[str]:
            self.asked += tags
            if self.failures:
                self.failures -= 1
                raise BrokerUnavailable
            return await renew(tags)

        self._monkeypatch.setattr(broker, "renew", renewed)

    async def waits(self, count: int) -> None:
        """Return when so many deliveries wait."""
        async with asyncio.timeout(5):
            while len(self.service.rates.waiting) < count:
                await asyncio.sleep(0.005)

    async def lose(self) -> None:
        """Have the broker deliver once more what waits; the same worker receives it again."""
        (execution,) = self.service.rates.waiting
        await self.celery.broker.settle([Settlement(execution.delivery.tag, Action.REQUEUE)])
        await self.waits(2)

    def start(self) -> None:
        """Nothing waits any more."""
        self.service.rates.limits["limited"].change(None)


@pytest.fixture(params=["leases", "connections"])
def site(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Site:
    """Where deliveries have leases that are renewed, and where they belong to connections."""
    if request.param == "connections":
        monkeypatch.setattr(MemoryBroker, "renewer", lambda _: None)
    return Site(monkeypatch)


async def test_what_somebody_else_has_by_now_is_not_started_after_a_sleep(site: Site) -> None:
    async with site.holding() as handle:
        await site.lose()
        site.slept = 31.0
        site.start()
        assert await handle.result(5) == 2
        while site.service.runners:
            await asyncio.wait(list(site.service.runners), timeout=5)
    assert site.starts == [1, 2]


async def test_what_somebody_else_has_by_now_does_not_expire_here(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.holding() as handle:
        (execution,) = site.service.rates.waiting
        lost = execution.delivery.tag
        monkeypatch.setattr(Execution, "has_expired", property(lambda each: each.delivery.tag == lost))
        await site.lose()
        site.slept = 31.0
        site.start()
        assert await handle.result(5) == 2
    assert site.starts == [1, 2]


async def test_what_nobody_has_taken_meanwhile_is_started(site: Site) -> None:
    async with site.holding() as handle:
        site.slept = 31.0
        site.failures = 2  # the broker is away for a moment
        site.start()
        assert await handle.result(5) == 2
    assert site.starts == [1, 2]
    assert len(site.asked) == 3


async def test_whose_lease_is_fresh_the_broker_is_not_asked(site: Site) -> None:
    async with site.holding() as handle:
        site.slept = 5.0
        site.start()
        assert await handle.result(5) == 2
    assert site.asked == []


async def test_who_waits_for_the_broker_can_be_cancelled(site: Site) -> None:
    async with site.holding() as handle:
        site.slept = 31.0
        site.failures = 1_000_000
        site.start()
        async with asyncio.timeout(5):
            while not site.asked:
                await asyncio.sleep(0.005)
        await handle.cancel()
        async with asyncio.timeout(5):
            while await handle.state() != "REVOKED":
                await asyncio.sleep(0.005)
        site.failures = 0
    assert site.starts == [1]
