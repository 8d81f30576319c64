"""What becomes of records, and of who waits for them, when Redis has trouble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.services import RedisServer

from celeriac.errors import StoreUnavailable
from celeriac.stores.chords import ChordClaim, ChordPart
from celeriac.stores.records import EventDraft, RecordFilter, Transition
from celeriac.stores.redis import RedisStore

_OPTIONS = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}

NewStore = Callable[..., Awaitable[RedisStore]]


@pytest.fixture
async def new_store() -> AsyncIterator[NewStore]:
    async with AsyncExitStack() as stack:

        async def open_(url: str, **options: Any) -> RedisStore:
            store = RedisStore(url, options={**_OPTIONS, **options})
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield open_


def step(task_id: str, state: str, **fields: Any) -> Transition:
    return Transition(task_id=task_id, state=state, at=time.time(), **fields)


async def _enter(manager: Any) -> None:
    async with manager:
        pass


def operations(store: RedisStore) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "transition": lambda: store.transition([step("a", "PENDING")]),
        "append_events": lambda: store.append_events([EventDraft("a", "value", "1", 1.0)]),
        "get": lambda: store.get(["a"]),
        "list": lambda: store.list(RecordFilter()),
        "events": lambda: store.events("a"),
        "request_cancel": lambda: store.request_cancel(["a"]),
        "cancelled": lambda: store.cancelled(["a"]),
        "forget": lambda: store.forget(["a"]),
        "set_chord_size": lambda: store.set_chord_size("g", 2),
        "save_chord_header": lambda: store.save_chord_header("g", "[]"),
        "extend_chord": lambda: store.extend_chord("g"),
        "add_chord_parts": lambda: store.add_chord_parts([ChordPart("g", "a", 0, "SUCCESS", "1")]),
        "claimed_chords": lambda: store.claimed_chords(["g"]),
        "finish_chord": lambda: store.finish_chord(ChordClaim("g", "token", [])),
        "trim": store.trim,
        "watch": lambda: _enter(store.watch("a")),
        "until ready": lambda: _enter(store.watch("a", until_ready=True)),
        "cancellations": lambda: _enter(store.cancellations()),
    }


async def test_every_method_says_that_the_server_is_gone(
    redis_server: RedisServer, new_store: NewStore
) -> None:
    store = await new_store(redis_server.url)
    await asyncio.to_thread(redis_server.stop)
    for name, operation in operations(store).items():
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
            await operation()
        assert time.monotonic() - begun < 1.5, name
        assert not caught.value.permanent
    await asyncio.to_thread(redis_server.start)
    for operation in operations(store).values():
        await operation()


async def test_a_silent_server_is_told_in_time(redis_server: RedisServer, new_store: NewStore) -> None:
    store = await new_store(redis_server.url)
    await store.transition([step("a", "PENDING")])
    redis_server.pause()
    begun = time.monotonic()
    found = await asyncio.gather(
        *(operation() for operation in operations(store).values()), return_exceptions=True
    )
    assert {type(outcome) for outcome in found} == {StoreUnavailable}
    assert time.monotonic() - begun < 3
    redis_server.resume()
    assert (await store.get(["a"]))["a"].state == "PENDING"


async def test_waiters_live_through_a_restart(new_store: NewStore) -> None:
    with RedisServer(append_only=True) as server:
        store, other = await new_store(server.url), await new_store(server.url, client_name="other")
        await store.transition([step("a", "PENDING"), step("b", "STARTED")])
        async with store.watch("a", until_ready=True) as watch, store.cancellations() as feed:
            await asyncio.to_thread(server.restart)
            # While the waiter's connection is away, or just back: either way it must hear.
            await other.transition([step("a", "SUCCESS", result="1")])
            await other.request_cancel(["b"])
            async with asyncio.timeout(5):
                while not (await store.get(["a"]))["a"].ready:
                    await watch.changed()
                assert "b" in await feed.next()


async def test_a_lost_connection_wakes_whoever_listens(
    redis_server: RedisServer, new_store: NewStore
) -> None:
    store = await new_store(redis_server.url)
    async with store.watch("a", until_ready=True) as watch:
        await asyncio.to_thread(redis_server.disconnect, "pubsub")
        await asyncio.wait_for(watch.changed(), 5)


async def test_a_full_server_changes_nothing(redis_server: RedisServer, new_store: NewStore) -> None:
    store = await new_store(redis_server.url)
    await store.transition([step("a", "PENDING", name="t")])
    await asyncio.to_thread(redis_server.limit_memory)
    with pytest.raises(StoreUnavailable, match="out of memory") as caught:
        await store.transition([step("a", "STARTED"), step("b", "PENDING"), step("b", "SUCCESS")])
    assert not caught.value.permanent
    assert caught.value.why == "Redis is out of memory."
    with pytest.raises(StoreUnavailable, match="out of memory"):
        await store.request_cancel(["a"])
    records = await store.get(["a", "b"])
    assert {id_: record.state for id_, record in records.items()} == {"a": "PENDING"}
    assert [event.data["state"] for event in await store.events("a")] == ["PENDING"]
    assert [record.id for record in (await store.list(RecordFilter(state="PENDING"))).records] == ["a"]
    assert await store.forget(["a"]) == 1, "what frees memory goes on"


async def test_a_replica_is_read_from_but_not_written_to(
    redis_server: RedisServer, new_store: NewStore
) -> None:
    store = await new_store(redis_server.url)
    await store.transition([step("a", "PENDING")])
    await asyncio.to_thread(redis_server.follow)
    with pytest.raises(StoreUnavailable, match="read-only replica"):
        await store.transition([step("a", "STARTED")])
    await asyncio.to_thread(redis_server.lead)
    await store.transition([step("a", "STARTED")])
    assert (await store.get(["a"]))["a"].state == "STARTED"


async def test_a_wrong_password_is_permanent(new_store: NewStore) -> None:
    with RedisServer(password="right") as server:
        store = await new_store(server.url_for(password="wrong"))
        with pytest.raises(StoreUnavailable) as caught:
            await store.get(["a"])
        assert caught.value.permanent
        assert "wrong" not in str(caught.value)


async def test_a_user_who_may_only_touch_the_prefix(new_store: NewStore) -> None:
    rules = "on >secret ~shop:* &shop:* +@all -@dangerous +info"
    with RedisServer(users={"ann": rules}) as server:
        store = await new_store(server.url_for("ann", "secret"), global_keyprefix="shop:")
        for operation in operations(store).values():
            await operation()
        other = await new_store(server.url_for("ann", "secret"), global_keyprefix="till:", client_name="till")
        with pytest.raises(StoreUnavailable, match="does not allow") as caught:
            await other.transition([step("a", "PENDING")])
        assert caught.value.permanent


async def test_failures_leave_no_connections(redis_server: RedisServer, new_store: NewStore) -> None:
    store = await new_store(redis_server.url)
    await store.transition([step("a", "PENDING")])
    tasks = len(asyncio.all_tasks())
    for _ in range(5):
        await asyncio.to_thread(redis_server.disconnect)
        await asyncio.gather(
            *(operation() for operation in operations(store).values() for _ in range(20)),
            return_exceptions=True,
        )
    async with asyncio.timeout(5):
        while (
            len(await asyncio.to_thread(redis_server.connections)) > 2 or len(asyncio.all_tasks()) > tasks + 2
        ):
            await asyncio.sleep(0.02)
