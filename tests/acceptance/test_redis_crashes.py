"""Workers on Redis that are killed at any moment: no task is lost, and none is left in anybody's hands."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.acceptance.ledger import Ledger, wait_until_nothing_is_held
from tests.acceptance.processes import Launcher
from tests.services import RedisServer

ROUNDS = 4


async def test_sigkill_in_the_middle_of_heavy_traffic_loses_nothing(
    redis_server: RedisServer, tmp_path: Path, launcher: Launcher
) -> None:
    conf = {"celeriac_lease": 1.0, "celeriac_delivery_limit": 100}
    ledger = Ledger(tmp_path / "ledger-app", launcher, url=redis_server.url, conf=conf)
    stopping = asyncio.Event()
    ids: list[str] = []

    async def publish() -> None:
        while not stopping.is_set():
            # Some go by their lists, some by way of the delayed ones.
            signatures = [
                ledger.client.signature(
                    "ledger.work", (0.0,), options={"countdown": 0.2} if n % 10 == 0 else {}
                )
                for n in range(30)
            ]
            ids.extend(handle.id for handle in await ledger.client.enqueue_many(signatures))
            await asyncio.sleep(0.1)

    async with ledger.client:
        publishing = asyncio.create_task(publish())
        worker = await asyncio.to_thread(ledger.start_worker, "-c", "100")
        for _ in range(ROUNDS):
            # The next one is there before this one is killed, so that there is always somebody who receives.
            following = await asyncio.to_thread(ledger.start_worker, "-c", "100")
            await asyncio.sleep(random.random() / 2)
            worker.kill()
            worker = following
        stopping.set()
        await publishing
        async with asyncio.timeout(60):
            results = await asyncio.gather(*(ledger.client.handle(task_id).result() for task_id in ids))
        assert list(results) == ids
        assert await ledger.client.queue_size("celery") == 0
        assert await ledger.client.broker.dead_letters() == []
    assert set(ledger.lines("end")) == set(ids)
    again = sum(count > 1 for count in ledger.lines("start").values())
    # Only what a killed worker had in its slots may run again.
    assert again <= ROUNDS * 100
    await asyncio.to_thread(wait_until_nothing_is_held, redis_server)
    with redis_server.admin() as client:
        assert not client.exists("celeriac:delayed", "celeriac:delayed:celery", "celeriac:dead")
