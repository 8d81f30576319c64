"""Redis takes a message, and the connection ends before it has said so: nobody is told that there is no task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.acceptance.outages import Site

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, PublishTimeout
from celeriac.stores.records import RecordFilter, TaskRecord
from celeriac.worker.embedded import run_embedded

CUT = r"The broker did not confirm: Redis at .* cannot be reached: .*; the task may or may not have been enqueued\."
SILENT = r"The broker did not confirm: Redis at .* nothing came back within 0\.6 seconds; the task may or may not .*\."


@dataclass(frozen=True)
class Shop:
    """An app that reaches its broker through a network that can fail, and the same app on the server's own side."""

    site: Site
    far: Celery
    near: Celery

    async def records(self) -> list[TaskRecord]:
        """Those of all tasks, the oldest first."""
        return list(reversed((await self.near.store.list(RecordFilter())).records))

    async def queued(self, count: int) -> None:
        """Wait until so many messages are in the queue, of which nobody is told here."""
        async with asyncio.timeout(10):
            while await self.near.queue_size("celery") < count:
                await asyncio.sleep(0.02)


def app_at(url: str, backend: str) -> Celery:
    app = Celery("shop", broker=url, backend=backend, set_as_current=False)
    app.conf.celeriac_publish_deadline = 20

    @app.task(name="shop.add")
    async def add(first: int, second: int) -> int:
        return first + second

    return app


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site.open() as site:
        yield site


@asynccontextmanager
async def open_shop(site: Site, records: str, folder: Path) -> AsyncIterator[Shop]:
    store = f"sqlite:///{folder / 'celery.db'}"
    far_url = f"{site.url}?socket_timeout=0.6&socket_connect_timeout=0.6"
    far = app_at(far_url, far_url if records == "redis" else store)
    near = app_at(site.server.url, site.server.url if records == "redis" else store)
    async with far, near:
        yield Shop(site, far, near)


async def alone(app: Celery) -> None:
    await app.enqueue("shop.add", (3, 4))


async def together(app: Celery) -> None:
    await asyncio.gather(app.enqueue("shop.add", (3, 4)), app.enqueue("shop.add", (3, 4)))


async def many(app: Celery) -> None:
    await app.enqueue_many([app.signature("shop.add", (3, 4)) for _ in range(3)])


async def later(app: Celery) -> None:
    signatures = [app.signature("shop.add", (3, 4)), app.signature("shop.add", (3, 4)).set(countdown=0.1)]
    await app.enqueue_many(signatures)


async def cut(site: Site) -> None:
    site.proxy.cut()


async def kill(site: Site) -> None:
    """The server dies, with all that was connected, and comes back with what it had."""
    await asyncio.to_thread(site.server.kill)
    await asyncio.to_thread(site.server.start)
    site.proxy.cut()


async def keep_silent(site: Site) -> None:
    """Nothing more happens: what was swallowed is waited for in vain."""


each_store = pytest.mark.parametrize("records", ["redis", "sqlite"])


@each_store
@pytest.mark.parametrize(
    ("enqueue", "end"),
    [(each, cut) for each in (alone, together, many, later)]
    + [(each, end) for each in (alone, many) for end in (kill, keep_silent)],
)
async def test_a_task_whose_connection_ended_before_the_reply_keeps_its_record_and_runs(
    enqueue: Callable[[Celery], Awaitable[None]],
    end: Callable[[Site], Awaitable[None]],
    records: str,
    site: Site,
    tmp_path: Path,
) -> None:
    async with open_shop(site, records, tmp_path) as shop:
        for warm in (many, later):  # the server knows the scripts from then on
            await warm(shop.far)
        before = len(await shop.records())
        queued = await shop.near.queue_size("celery")
        site.proxy.blackhole(requests=False)
        enqueuing = asyncio.ensure_future(enqueue(shop.far))
        await shop.queued(queued + 1)
        await end(site)
        with pytest.raises(PublishTimeout, match=SILENT if end is keep_silent else CUT):
            await enqueuing
        await site.proxy.heal()

        kept = await shop.records()
        assert len(kept) - before == {alone: 1, together: 2, many: 3, later: 2}[enqueue]
        assert {record.state for record in kept} == {"PENDING"}
        assert all(record.args == [3, 4] for record in kept)
        async with run_embedded(shop.near, concurrency=2):
            for record in kept:
                assert await shop.near.handle(record.id).result(20) == 7
        assert {record.state for record in await shop.records()} == {"SUCCESS"}


@each_store
async def test_a_task_that_was_never_sent_has_no_record(records: str, site: Site, tmp_path: Path) -> None:
    async with open_shop(site, records, tmp_path) as shop:
        await site.proxy.refuse()
        for enqueue in (alone, many):
            with pytest.raises(BrokerUnavailable, match="cannot be reached"):
                await enqueue(shop.far)
        await site.proxy.heal()
        assert await shop.records() == []
        assert await shop.near.queue_size("celery") == 0


@each_store
async def test_a_task_that_redis_refused_has_no_record(records: str, site: Site, tmp_path: Path) -> None:
    """It has answered, so that everybody knows."""
    async with open_shop(site, records, tmp_path) as shop:
        await alone(shop.far)
        await asyncio.to_thread(site.server.follow)
        for enqueue in (alone, together, many):
            with pytest.raises(BrokerUnavailable, match="is a read-only replica"):
                await enqueue(shop.far)
        await asyncio.to_thread(site.server.lead)
        assert len(await shop.records()) == 1
        assert await shop.near.queue_size("celery") == 1


async def test_a_chosen_id_is_recorded_beside_redis_when_its_task_runs(site: Site, tmp_path: Path) -> None:
    """Before that, a record elsewhere would tell whoever comes again with the id that the task was enqueued."""
    async with open_shop(site, "sqlite", tmp_path) as shop:
        await alone(shop.far)
        site.proxy.blackhole(requests=False)
        enqueuing = asyncio.ensure_future(shop.far.enqueue("shop.add", (3, 4), task_id="chosen"))
        await shop.queued(2)
        site.proxy.cut()
        with pytest.raises(PublishTimeout, match=CUT):
            await enqueuing
        await site.proxy.heal()
        assert not await shop.near.store.get(["chosen"])
        async with run_embedded(shop.near, concurrency=1):
            async with asyncio.timeout(10):
                while not await shop.near.store.get(["chosen"]):
                    await asyncio.sleep(0.02)
            assert await shop.near.handle("chosen").result(20) == 7
