"""Whatever is written into a queue: the worker works on, executes none of it, and it is kept to be looked at."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.acceptance.hostile import insert_sqlite, letters, publish_amqp, push_redis, raw_texts
from tests.acceptance.ledger import Ledger
from tests.acceptance.processes import Launcher
from tests.services import RabbitMQServer, RedisServer

#: Seconds for one large message after the other.
PATIENCE = 90.0

#: RabbitMQ itself takes no more headers than fit into one frame.
MOST_IN_A_FRAME = 5_000


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What there is once something was executed."""
    return tmp_path / "executed"


async def assert_all_is_kept(ledger: Ledger, kept: int, marker: Path) -> None:
    """One worker buries so many messages, and then does what it is asked to."""
    async with ledger.client as client:
        worker = await asyncio.to_thread(ledger.start_worker, "-c", "4")
        assert await (await client.enqueue("ledger.add", (1, 2))).result(PATIENCE) == 3
        async with asyncio.timeout(PATIENCE):
            while len(dead := await client.dead_letters(limit=1_000)) < kept:
                await asyncio.sleep(0.1)
        assert len(dead) == kept
        assert all(letter.reason and letter.queue == "celery" for letter in dead)
        assert max(letter.deliveries for letter in dead) == 1
        assert worker.output.count("Message dead-lettered from queue 'celery'") == kept
        # Somebody sends all of it again.
        assert await client.replay_dead_letters([letter.id for letter in dead]) == kept
        assert await (await client.enqueue("ledger.add", (3, 4))).result(PATIENCE) == 7
        async with asyncio.timeout(PATIENCE):
            while len(await client.dead_letters(limit=1_000)) < kept:
                await asyncio.sleep(0.1)
        assert worker.running
        worker.terminate()
        assert await asyncio.to_thread(worker.wait) == 0
    assert not await asyncio.to_thread(marker.exists)
    assert "Traceback" not in worker.output


async def test_redis(tmp_path: Path, launcher: Launcher, redis_server: RedisServer, marker: Path) -> None:
    ledger = Ledger(tmp_path / "ledger-app", launcher, url=redis_server.url)
    texts = [letter.envelope().encode() for letter in letters(marker, most=1_000_000)] + [*raw_texts()]
    await asyncio.to_thread(push_redis, redis_server.url, texts)
    await assert_all_is_kept(ledger, len(texts) + 2, marker)


async def test_sqlite(tmp_path: Path, launcher: Launcher, marker: Path) -> None:
    ledger = Ledger(tmp_path / "ledger-app", launcher)
    async with ledger.client as client:
        await client.queue_size("celery")
    texts = [letter.envelope().encode() for letter in letters(marker, most=1_000_000)] + [*raw_texts()]
    await asyncio.to_thread(insert_sqlite, ledger.folder / "celery.db", texts)
    await assert_all_is_kept(ledger, len(texts) + 2, marker)


async def test_rabbitmq(
    tmp_path: Path, launcher: Launcher, rabbitmq: RabbitMQServer, rabbitmq_url: str, marker: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger-app", launcher, url=rabbitmq_url)
    ledger.client.conf.result_backend = f"sqlite:///{ledger.folder / 'celery.db'}"
    async with ledger.client as client:
        await client.enqueue("ledger.add", (1, 2))
    sent = letters(marker, most=MOST_IN_A_FRAME)
    await publish_amqp(rabbitmq_url, sent)
    await assert_all_is_kept(ledger, len(sent), marker)
