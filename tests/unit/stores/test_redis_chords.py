"""Chords in Redis: Celery's keys, how long they live, and answers that are lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import celery
import pytest
import redis
from celery import chord
from celery.backends.base import compress_payload
from tests.services import Proxy, RedisServer

from celeriac import Celery
from celeriac.errors import StoreUnavailable
from celeriac.stores.chords import ChordClaim, ChordPart
from celeriac.stores.redis import RedisStore
from celeriac.stores.redis_chords import ChordTimes
from celeriac.worker.embedded import run_embedded

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


def part(index: int | None, result: str = "1") -> ChordPart:
    return ChordPart("g", f"g-{index}", index, "SUCCESS", result)


async def test_keys_and_values_are_those_of_celerys_backend(
    store: RedisStore, client: redis.Redis, redis_url: str
) -> None:
    app = celery.Celery("stock", backend=redis_url, set_as_current=False)
    key = app.backend.get_key_for_group("g").decode()
    await store.save_chord_header("g", '[["g",null],[]]')
    await store.set_chord_size("g", 2)
    await store.extend_chord("g")
    await store.add_chord_parts([part(0, '{"a": 1}'), part(None, "null")])
    assert {name.decode() for name in client.scan_iter()} == {
        key,
        *(f"{key}{end}" for end in (".j", ".t", ".s", ".d")),
    }
    assert client.zrange(f"{key}.j", 0, -1, withscores=True) == [
        (app.backend.encode([1, "g-0", "SUCCESS", {"a": 1}]).encode(), 0.0),
        (app.backend.encode([1, "g-None", "SUCCESS", None]).encode(), float("inf")),
    ]
    (claim,) = await store.add_chord_parts([part(1)])
    assert client.get(f"{key}.c") == claim.token.encode()
    assert await store.finish_chord(claim)
    assert {name.decode(): client.ttl(name) > 0 for name in client.scan_iter()} == {
        key: True,
        f"{key}.c": True,
    }
    assert client.get(f"{key}.c") == b"done"
    app.close()


async def test_everything_expires(store: RedisStore, client: redis.Redis) -> None:
    store.chord_expires = 100
    await store.save_chord_header("g", '[["g",null],[]]')
    await store.set_chord_size("g", 2)
    await store.add_chord_parts([part(0)])
    ages = {
        name.decode().removeprefix("celery-taskset-meta-"): client.ttl(name) for name in client.scan_iter()
    }
    assert {name: 95 <= age <= 100 for name, age in ages.items() if name != "g"} == {
        "g.s": True,
        "g.j": True,
        "g.d": True,
    }
    assert _DAY - 5 <= ages["g"] <= _DAY, "users read a saved group, too"


def test_times_are_whole_seconds_and_zero_is_for_ever() -> None:
    assert ChordTimes.of(None, None, 0.1) == ChordTimes(0, 0, 1)
    assert ChordTimes.of(10.0, 0.2, 6.0) == ChordTimes(1, 10, 6)
    assert ChordTimes.of(10.0, 20.0, 200.0).group_kept == 20
    assert ChordTimes.of(10.0, 20.0, 200.0).remembered == 400


async def test_parts_that_stock_workers_have_compressed(store: RedisStore, client: redis.Redis) -> None:
    written = compress_payload(json.dumps([1, "x", "SUCCESS", ["é", {"b": 2}]]), "gzip")
    client.zadd("celery-taskset-meta-g.j", {written: 0})
    client.sadd("celery-taskset-meta-g.d", "x:0")
    await store.set_chord_size("g", 2)
    (claim,) = await store.add_chord_parts([part(1)])
    assert (claim.parts[0].task_id, json.loads(claim.parts[0].result)) == ("x", ["é", {"b": 2}])


async def test_a_part_in_another_format_fails_the_chord_with_a_sentence(
    store: RedisStore, client: redis.Redis
) -> None:
    client.zadd("celery-taskset-meta-g.j", {b"\x80\x04\x95": 0})
    client.sadd("celery-taskset-meta-g.d", "x:0")
    await store.set_chord_size("g", 2)
    (claim,) = await store.add_chord_parts([part(1)])
    assert claim.parts[0].state == "FAILURE"
    assert "result_serializer" in claim.parts[0].result


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(redis_server.host, redis_server.port) as made:
        yield made


async def lose_a_claim(store: RedisStore, proxy: Proxy, server: RedisServer) -> asyncio.Task[Any]:
    """Complete a chord, and swallow the answer, which is the claim."""
    await store.set_chord_size("g", 1)
    proxy.blackhole(requests=False, replies=True)
    adding = asyncio.create_task(store.add_chord_parts([part(0)]))
    with redis.Redis.from_url(server.url) as client:
        while not await asyncio.to_thread(client.exists, "celery-taskset-meta-g.c"):
            await asyncio.sleep(0.01)
    return adding


@pytest.mark.parametrize("cancel", [False, True], ids=["lost", "cancelled"])
async def test_a_claim_that_nobody_heard_of_is_found_again(
    redis_server: RedisServer, proxy: Proxy, cancel: bool
) -> None:
    store = RedisStore(f"redis://{proxy.host}:{proxy.port}")
    await store.open()
    # The server knows the script already: else its answer would be that it does not.
    await store.add_chord_parts([ChordPart("other", "a", 0, "SUCCESS", "1")])
    adding = await lose_a_claim(store, proxy, redis_server)
    if cancel:
        adding.cancel()
    await proxy.heal()
    proxy.cut()
    with pytest.raises(asyncio.CancelledError if cancel else StoreUnavailable):
        await adding
    claims: list[ChordClaim] = []
    while not claims:
        again = (store.add_chord_parts([part(0)]) for _ in range(3))
        for found in await asyncio.gather(*again, return_exceptions=True):
            # The link may not have heard yet that its connection is gone.
            claims += [] if isinstance(found, StoreUnavailable) else found
    (claim,) = claims
    assert claim.parts == [part(0)]
    assert await store.finish_chord(claim)
    await store.close()


async def test_an_extension_that_is_tried_again_counts_once(store: RedisStore, client: redis.Redis) -> None:
    for token in ("one", "one", "other"):
        await store.extend_chord("g", 1, token)
    added, *remembered = sorted(client.scan_iter("*"), key=len)
    assert client.get(added) == b"2"
    assert all(0 < client.ttl(key) <= _DAY for key in remembered)


async def test_a_task_whose_addition_to_its_chord_is_not_confirmed_adds_once(
    redis_url: str, client: redis.Redis
) -> None:
    app = Celery("adds", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0
    asked, tried = asyncio.Event(), asyncio.Event()

    @app.task(name="adds", bind=True)
    async def adds(self: Any) -> int:
        tried.set()
        await asked.wait()
        self.add_to_chord(one.si())
        return 1

    @app.task(name="one")
    async def one() -> int:
        return 1

    @app.task(name="total")
    async def total(values: list[int]) -> int:
        return sum(values)

    async with app, run_embedded(app, concurrency=2):
        handle = await app.enqueue(chord([adds.s(), one.s()], total.s()))
        await tried.wait()
        extend, attempts = app.store.extend_chord, 0

        async def extend_and_hear_nothing(*arguments: Any) -> None:
            nonlocal attempts
            attempts += 1
            await extend(*arguments)
            if attempts == 1:
                raise StoreUnavailable("the answer was lost")

        app.store.extend_chord = extend_and_hear_nothing  # type: ignore[method-assign]
        asked.set()
        assert await handle.result(10) == 3
        assert attempts == 2
