"""The SQL broker, where the broker contract does not look."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from celeriac.brokers import sql
from celeriac.brokers.base import Publication
from celeriac.brokers.sql import SQLBroker
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.message import Message
from celeriac.sql import messages


@pytest_asyncio.fixture
async def broker(database_url: str) -> AsyncIterator[SQLBroker]:
    broker = SQLBroker(database_url)
    await broker.open()
    yield broker
    await broker.close()


def publications(count: int) -> list[Publication]:
    return [
        Publication(Message({"task": "t", "id": str(n)}, {}, b"[]"), "q", task_id=str(n))
        for n in range(count)
    ]


async def test_purges_any_number_in_steps(broker: SQLBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_PURGE_LIMIT", 10)
    await broker.publish(publications(35))

    assert await broker.purge("q") == 35
    assert await broker.purge("q") == 0


async def test_a_sleeping_consumer_does_not_look_again_and_again(
    broker: SQLBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    has_ready = messages.has_ready

    def counting(*args: object) -> bool:
        nonlocal looks
        looks += 1
        return has_ready(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(messages, "has_ready", counting)
    await broker.wait(["q"], timeout=0.5)

    assert looks <= 4


async def test_brokers_of_one_file_share_their_threads(broker: SQLBroker, database_url: str) -> None:
    others = [SQLBroker(database_url) for _ in range(3)]
    await asyncio.gather(*(other.open() for other in others for _ in range(2)))
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("celeriac-sql-w")]
    assert sorted(names) == ["celeriac-sql-watch", "celeriac-sql-write"]
    for other in others:
        await other.close()

    await broker.publish(publications(1))


async def test_trouble_with_the_file_is_one_sentence(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "celery.db"
    path.write_bytes(b"\x00\xff" * 5000)
    broker = SQLBroker(f"sqlite:///{path}")

    with pytest.raises(BrokerUnavailable, match="damaged or no SQLite database"):
        await broker.open()
    with pytest.raises(BrokerUnavailable, match="not open"):
        await broker.size("q")
    await broker.close()
