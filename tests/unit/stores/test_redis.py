"""What is particular to the store in Redis: its keys, how long they live, and how it works through many of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from celeriac.redis.link import Link
from celeriac.redis.server import Server
from celeriac.stores import redis_layout as layout
from celeriac.stores.records import EventDraft, RecordFilter, Transition
from celeriac.stores.redis import RedisStore

_DAY = 86_400


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        made.flushdb()
        yield made


@pytest.fixture
async def store(redis_url: str, client: redis.Redis) -> AsyncIterator[RedisStore]:
    made = RedisStore(redis_url)
    await made.open()
    yield made
    await made.close()


def step(task_id: str, state: str, at: float | None = None, **fields: Any) -> Transition:
    return Transition(task_id=task_id, state=state, at=time.time() if at is None else at, **fields)


def names(client: redis.Redis) -> set[str]:
    return {key.decode() for key in client.scan_iter()}


async def test_where_everything_is(store: RedisStore, client: redis.Redis) -> None:
    await store.transition([step("a", "PENDING", name="t", queue="q", owner="ann"), step("a", "STARTED")])
    await store.append_events([EventDraft("a", "value", "1", time.time())])
    await store.request_cancel(["a"])
    assert names(client) == {
        "celery-task-meta-a",
        "celeriac:task:a",
        "celeriac:events:a",
        "celeriac:index",
        "celeriac:index:state:STARTED",
        "celeriac:index:name:t",
        "celeriac:index:queue:q",
        "celeriac:index:owner:ann",
        "celeriac:cancelled",
        "celeriac:numbers",
    }
    assert await store.forget(["a"]) == 1
    assert names(client) == {"celeriac:numbers"}


async def test_how_long_keys_live(redis_url: str, store: RedisStore, client: redis.Redis) -> None:
    keys = ("celery-task-meta-a", "celeriac:task:a", "celeriac:events:a")
    await store.transition([step("a", "STARTED")])
    await store.append_events([EventDraft("a", "value", "1", time.time())])
    assert [client.ttl(key) for key in keys] == [-1, -1, -1], (
        "a task may run for longer than results are kept"
    )
    await store.transition([step("a", "FAILURE", retries=0)])
    assert _DAY - 5 <= int(client.ttl(keys[0])) <= _DAY
    assert all(int(client.ttl(key)) > _DAY for key in keys[1:])
    await store.append_events([EventDraft("a", "progress", '{"current": 1}', time.time())])
    assert int(client.ttl(keys[1])) > _DAY
    await store.transition([step("a", "RETRY", retries=0)])
    assert [client.ttl(key) for key in keys] == [-1, -1, -1]
    for_ever = RedisStore(redis_url, expires=None)
    await for_ever.open()
    await for_ever.transition([step("a", "SUCCESS", retries=1)])
    assert [client.ttl(key) for key in keys] == [-1, -1, -1]
    await for_ever.close()


async def test_a_result_that_has_expired_is_no_record(store: RedisStore, client: redis.Redis) -> None:
    await store.transition([step("a", "SUCCESS"), step("b", "PENDING")])
    client.delete("celery-task-meta-a")
    assert set(await store.get(["a", "b"])) == {"b"}
    assert await store.trim() == 1
    assert "celeriac:task:a" not in names(client)


@pytest.mark.parametrize(
    ("prefix", "used"),
    [(None, ""), ("", ""), ("shop", "shop_"), ("shop:", "shop:"), ("a.", "a."), ("b-", "b-")],
)
def test_the_prefix_is_celerys(prefix: str | None, used: str) -> None:
    assert layout.key_prefix({"global_keyprefix": prefix}) == used


async def test_one_call_is_one_script(store: RedisStore, client: redis.Redis) -> None:
    await store.transition([step("warm", "PENDING")])
    before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    await store.transition(
        [step(f"{number}", state) for number in range(64) for state in ("PENDING", "STARTED", "SUCCESS")]
    )
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 1


async def test_a_batch_is_sent_in_the_tick_of_its_call(
    redis_url: str, store: RedisStore, client: redis.Redis
) -> None:
    link = Link.shared(Server.from_url(redis_url))
    await store.transition([step("warm", "PENDING")])
    reads = client.info("stats")["total_reads_processed"]

    async def publish() -> None:
        await link.send("LPUSH", "celery", "message")

    await asyncio.gather(store.transition([step("a", "PENDING")]), publish())
    assert client.info("stats")["total_reads_processed"] - reads == 2, "one write, and the question itself"


async def test_many_events_and_long_histories(store: RedisStore) -> None:
    await store.transition([step("a", "PENDING")])
    for number in range(60):
        await store.transition([step("a", "UPLOADING", result=f'{{"done": {number}}}')])
    await store.append_events([EventDraft("a", "value", str(number), time.time()) for number in range(2500)])
    await store.transition([step("a", "SUCCESS")])
    events = await store.events("a", limit=5000)
    assert [event.id for event in events] == [str(number) for number in range(1, 2563)]
    assert [event.data for event in events if event.kind == "value"] == list(range(2500))
    assert events[-1].data["state"] == "SUCCESS"
    assert [event.id for event in await store.events("a", after="61", limit=2)] == ["62", "63"]


async def test_lists_beyond_what_one_slice_looks_at(store: RedisStore) -> None:
    begun = 1_700_000_000.0
    for first in range(0, 5000, 1000):
        await store.transition(
            [
                step(f"{number}", "PENDING", begun + number, name="rare" if number % 1000 == 7 else "usual")
                for number in range(first, first + 1000)
            ]
        )

    async def ids(cursor: str | None = None, limit: int = 50, **where: Any) -> tuple[list[int], str | None]:
        page = await store.list(RecordFilter(**where), cursor, limit)
        return [int(record.id) for record in page.records], page.cursor

    assert await ids(name="rare") == ([4007, 3007, 2007, 1007, 7], None)
    assert await ids(search="007") == ([4007, 3007, 2007, 1007], None)
    assert await ids(search="nowhere") == ([], None)
    since, until = (datetime.fromtimestamp(begun + number, UTC) for number in (100, 103))
    assert await ids(since=since, until=until) == ([102, 101, 100], None)
    everything: list[int] = []
    cursor: str | None = None
    while True:
        part, cursor = await ids(cursor, limit=700, name="usual", state="PENDING")
        everything += part
        if cursor is None:
            break
    assert everything == [number for number in reversed(range(5000)) if number % 1000 != 7]


async def test_records_of_publishers_whose_clocks_differ(store: RedisStore) -> None:
    now = 1_700_000_000.0
    await store.transition([step("ahead", "PENDING", now + 900), step("right", "PENDING", now)])
    until = datetime.fromtimestamp(now + 1, UTC)
    assert [record.id for record in (await store.list(RecordFilter(until=until))).records] == ["right"]
    assert [record.id for record in (await store.list(RecordFilter(since=until))).records] == ["ahead"]


async def test_trimming_passes_by_what_has_not_ended(store: RedisStore) -> None:
    old = time.time() - 10 * _DAY
    await store.transition([step(f"open-{number}", "PENDING", old) for number in range(700)])
    await store.transition(
        [step(f"done-{number}", state, old) for number in range(700) for state in ("PENDING", "FAILURE")]
    )
    await store.transition([step("fresh", "SUCCESS")])
    removed = 0
    while count := await store.trim():
        removed += count
    assert removed == 700
    assert len((await store.list(RecordFilter(), limit=1000)).records) == 701


async def test_a_publisher_cleans_up_where_nobody_else_does(
    store: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.transition([step("old", "SUCCESS", time.time() - 2 * _DAY)])
    monkeypatch.setattr(store, "_trim_at", 0.0)
    await store.transition([step("new", "PENDING")])
    async with asyncio.timeout(5):
        while client.exists("celeriac:task:old"):
            await asyncio.sleep(0.01)
    assert set(await store.get(["old", "new"])) == {"new"}


async def test_closing_leaves_nothing_behind(redis_url: str, client: redis.Redis) -> None:
    tasks, connections = asyncio.all_tasks(), client.info("clients")["connected_clients"]
    for _ in range(3):
        store = RedisStore(redis_url)
        await store.open()
        await store.transition([step("a", "PENDING")])
        async with store.watch("a", until_ready=True), store.watch("b"), store.cancellations():
            pass
        await store.close()
    async with asyncio.timeout(5):
        while asyncio.all_tasks() != tasks or client.info("clients")["connected_clients"] != connections:
            await asyncio.sleep(0.01)


async def test_trimming_goes_on_beside_a_publisher_whose_clock_is_ahead(
    store: RedisStore, client: redis.Redis
) -> None:
    await store.transition([step("ahead", "PENDING", time.time() + 365 * _DAY)])
    await store.transition([step(f"open-{number}", "PENDING") for number in range(300)])
    old = time.time() - 2 * _DAY
    await store.transition([step("done", "PENDING", old), step("done", "SUCCESS", old + 1)])
    assert await store.trim() == 1
    assert client.scard("celeriac:index:state:SUCCESS") == 0


async def test_the_clean_up_keeps_pace_with_stock_workers(store: RedisStore, client: redis.Redis) -> None:
    ids = [f"{number}" for number in range(3000)]
    await store.transition([step(task_id, "PENDING") for task_id in ids])
    client.mset({f"celery-task-meta-{task_id}": '{"status": "SUCCESS", "result": 1}' for task_id in ids})
    await store.trim()
    await store.trim()
    assert client.scard("celeriac:index:state:PENDING") == 0


async def test_a_list_of_large_arguments_comes_in_parts(store: RedisStore, client: redis.Redis) -> None:
    large = f'["{"x" * 1_000_000}"]'
    await store.transition([step(f"{number}", "PENDING", args=large) for number in range(20)])
    client.config_resetstat()
    page = await store.list(RecordFilter(), limit=20)
    assert [record.id for record in page.records] == [f"{number}" for number in reversed(range(20))]
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] >= 10, (
        "nobody waits for 20 MB of another's"
    )


async def test_late_events_go_with_their_record(store: RedisStore, client: redis.Redis) -> None:
    await store.transition([step("a", "PENDING"), step("a", "FAILURE")])
    await store.append_events([EventDraft("a", "value", "1", time.time())])
    assert _DAY < int(client.ttl("celeriac:events:a")) <= int(client.ttl("celeriac:task:a"))
