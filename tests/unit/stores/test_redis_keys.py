"""Where Redis keeps idempotency keys and expired records, for how long, and what it makes of deleted results."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from celeriac.errors import StoreUnavailable
from celeriac.stores.records import Transition
from celeriac.stores.redis import RedisStore

_DAY = 86_400


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        made.flushdb()
        yield made


@pytest.fixture
async def store(redis_url: str, client: redis.Redis) -> AsyncIterator[RedisStore]:
    made = RedisStore(redis_url, options={"global_keyprefix": "shop"})
    await made.open()
    yield made
    await made.close()


def ended(task_id: str, ago: float) -> Transition:
    return Transition(task_id=task_id, state="SUCCESS", at=time.time() - ago, result="1", owner="ann")


def seconds_left(client: redis.Redis, key: str) -> float:
    return int(client.pttl(key)) / 1000


async def test_a_key_expires_by_itself(store: RedisStore, client: redis.Redis) -> None:
    await store.claim_key("k", "print", "task", expires=60.5)
    assert list(client.scan_iter()) == [b"shop_celeriac:key:k"]
    assert 55 < seconds_left(client, "shop_celeriac:key:k") <= 60.5
    await store.release_key("k", "task")
    assert not list(client.scan_iter())


async def test_an_expired_record_is_forgotten_by_itself(store: RedisStore, client: redis.Redis) -> None:
    await store.transition([ended("a", 2 * _DAY)])
    await store.trim()
    assert set(client.scan_iter("*:a")) == {b"shop_celeriac:expired:a"}
    assert _DAY - 5 < seconds_left(client, "shop_celeriac:expired:a") <= _DAY
    await store.forget(["a"])
    assert not list(client.scan_iter("*:a"))


async def test_a_record_whose_result_has_expired_is_gone_before_any_clean_up(
    store: RedisStore, client: redis.Redis
) -> None:
    await store.transition([ended("a", 2 * _DAY)])
    client.delete("shop_celery-task-meta-a")  # as Redis does it, in its time
    assert not await store.get(["a"])
    before = await store.gone(["a"])
    assert before["a"].owner == "ann"
    await store.trim()
    assert await store.gone(["a"]) == before


async def test_a_result_that_a_stock_client_forgot_leaves_no_trace(
    store: RedisStore, client: redis.Redis
) -> None:
    await store.transition([ended("a", 2 * _DAY)])
    await store.trim()
    await store.transition([ended("a", 10)])
    client.delete("shop_celery-task-meta-a")
    assert not await store.gone(["a"])
    await store.trim()
    assert not await store.gone(["a"])


async def test_records_that_never_expire_are_never_gone(redis_url: str, client: redis.Redis) -> None:
    store = RedisStore(redis_url, expires=None)
    await store.open()
    await store.transition([ended("a", 2 * _DAY)])
    await store.trim()
    assert set(await store.get(["a"])) == {"a"}
    client.delete("celery-task-meta-a")
    assert not await store.gone(["a"])
    await store.trim()
    assert not await store.gone(["a"])
    await store.close()


async def test_a_clean_up_works_on_a_server_that_is_full(store: RedisStore, client: redis.Redis) -> None:
    revoked = Transition(task_id="b", state="REVOKED", at=time.time() - 2 * _DAY)
    await store.transition([ended("a", 2 * _DAY), revoked])
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable):
            await store.transition([ended("c", 0)])
        assert await store.trim() == 2
    finally:
        client.config_set("maxmemory", 0)
    assert set(await store.gone(["a", "b"])) == {"a", "b"}
    assert set(await store.cancelled(["a", "b"])) == {"b"}


async def test_a_revoked_task_without_a_record_is_remembered_for_a_month(
    store: RedisStore, client: redis.Redis
) -> None:
    await store.transition([Transition(task_id="a", state="REVOKED", at=time.time())])
    await store.forget(["a"])
    (score,) = client.zmscore("shop_celeriac:cancelled", ["a"])
    assert abs(score + time.time() + 30 * _DAY) < 10
    client.zadd("shop_celeriac:cancelled", {"a": -time.time() + 1})
    await store.trim()
    assert not await store.cancelled(["a"])
