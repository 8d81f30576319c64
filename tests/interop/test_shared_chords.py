"""A chord whose parts are done by stock workers and by ours: counted once, completed once, whoever is last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery
import pytest
import redis
from celery.result import AsyncResult, GroupResult

from celeriac.stores.base import Store
from celeriac.stores.chords import ChordPart
from celeriac.stores.urls import store_for


@pytest.fixture(params=["sqlite", "redis", "memory", "redis-prefixed", "redis-unordered"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def options(kind: str) -> dict[str, Any]:
    return {
        "redis-prefixed": {"global_keyprefix": "shop"},
        "redis-unordered": {"result_chord_ordered": False},
    }.get(kind, {})


@pytest.fixture
def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/celery.db"
    if kind == "memory":
        return f"memory://{tmp_path}"
    url: str = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
async def store(url: str, options: dict[str, Any]) -> AsyncIterator[Store]:
    made = store_for(url, options=options)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def app(url: str, options: dict[str, Any]) -> Iterator[Any]:
    """A plain Celery app; on Redis all of it is Celery's own."""
    made = celery.Celery("stock", broker=f"memory://{url}", backend=url, set_as_current=False)
    made.conf.result_backend_transport_options = options

    @made.task(name="total", shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    with made.connection() as connection:
        connection.SimpleQueue("celery").clear()
    yield made
    made.close()


def body_of(app: Any) -> Any:
    return app.tasks["total"].s().set(task_id="body", link_error=[])


def bring(app: Any, index: int, value: Any, state: str = "SUCCESS", **facts: Any) -> None:
    """What a stock worker does when a part is done."""
    known = {
        "id": f"g-{index}",
        "group": "g",
        "group_index": index,
        "chord": body_of(app),
        "delivery_info": {},
    }
    app.backend.store_result(f"g-{index}", value, state)
    app.backend.on_chord_part_return(SimpleNamespace(**{**known, **facts}), state, value)


def called(app: Any) -> list[Any]:
    """The arguments of the bodies that were published."""
    calls = []
    with app.connection() as connection:
        queue = connection.SimpleQueue("celery")
        try:
            while True:
                message = queue.get(block=False)
                message.ack()
                args, _, _ = message.payload
                calls.append(args[0])
        except queue.Empty:
            return calls


def ours(index: int, value: Any, state: str = "SUCCESS") -> ChordPart:
    return ChordPart("g", f"g-{index}", index, state, json.dumps(value))


async def test_ours_is_the_last(app: Any, store: Store) -> None:
    await asyncio.to_thread(app.backend.set_chord_size, "g", 3)
    await asyncio.to_thread(bring, app, 1, {"né": [1]})
    assert await store.add_chord_parts([ours(0, "a")]) == []
    await asyncio.to_thread(bring, app, 1, {"né": [1]})
    (claim,) = await store.add_chord_parts([ours(2, "c")])
    found = {part.task_id: (part.state, json.loads(part.result)) for part in claim.parts}
    assert found == {"g-0": ("SUCCESS", "a"), "g-1": ("SUCCESS", {"né": [1]}), "g-2": ("SUCCESS", "c")}
    await asyncio.to_thread(bring, app, 1, {"né": [1]})
    assert await store.finish_chord(claim)
    await asyncio.to_thread(bring, app, 1, {"né": [1]})
    assert called(app) == []


async def test_stock_is_the_last(app: Any, store: Store, kind: str) -> None:
    await store.set_chord_size("g", 2)
    await asyncio.to_thread(app.backend.add_to_chord, "g", None)
    assert await store.add_chord_parts([ours(2, 30)]) == []
    await asyncio.to_thread(bring, app, 0, 1)
    await asyncio.to_thread(bring, app, 1, 2)
    (numbers,) = called(app)
    assert numbers == ([30, 1, 2] if kind == "redis-unordered" else [1, 2, 30])
    assert await store.add_chord_parts([ours(1, 2)]) == []
    assert await store.claimed_chords(["g"]) == set()


async def test_our_failure_fails_what_stock_completes(app: Any, store: Store) -> None:
    await store.set_chord_size("g", 2)
    await store.add_chord_parts(
        [ours(0, {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}, "FAILURE")]
    )
    await asyncio.to_thread(bring, app, 1, 2)
    assert called(app) == []
    body = await asyncio.to_thread(app.backend.get_task_meta, "body")
    assert body["status"] == "FAILURE"
    assert str(body["result"]) == "Dependency g-0 raised ValueError('no')"


async def test_stocks_failure_comes_as_celery_writes_it(app: Any, store: Store) -> None:
    await store.set_chord_size("g", 2)
    await asyncio.to_thread(bring, app, 0, KeyError("gone"), "FAILURE")
    (claim,) = await store.add_chord_parts([ours(1, 2)])
    failed = next(part for part in claim.parts if part.task_id == "g-0")
    error = app.backend.exception_to_python(json.loads(failed.result))
    assert (failed.state, type(error), error.args) == ("FAILURE", KeyError, ("gone",))


def in_shape(app: Any) -> GroupResult:
    inner = GroupResult("inner", [AsyncResult(f"g-{index}", app=app) for index in (1, 2)], app=app)
    return GroupResult("g", [AsyncResult("g-0", app=app), inner], app=app)


def shape(app: Any) -> Any:
    """The shape as JSON keeps it. Not to be called on the loop, as nothing that makes Celery's results is."""
    return json.loads(json.dumps(in_shape(app).as_tuple()))


def restored_shape(app: Any) -> Any:
    return json.loads(json.dumps(GroupResult.restore("g", app=app).as_tuple()))


def apply_chord(app: Any, *, nested: bool) -> None:
    """What ``chord.run`` asks of the backend before it publishes the header."""
    results = in_shape(app).results if nested else [AsyncResult(f"g-{index}", app=app) for index in range(3)]
    app.backend.apply_chord(("g", results), body_of(app))
    app.backend.set_chord_size("g", 3)


async def test_the_shape_that_we_keep_is_stocks(app: Any, store: Store) -> None:
    expected = await asyncio.to_thread(shape, app)
    await store.save_chord_header("g", json.dumps(expected))
    await store.set_chord_size("g", 3)
    assert await asyncio.to_thread(restored_shape, app) == expected
    for index in range(3):
        await asyncio.to_thread(bring, app, index, index)
    assert called(app) == [[0, [1, 2]]]


async def test_the_shape_that_stock_keeps_is_ours(app: Any, store: Store) -> None:
    await asyncio.to_thread(lambda: apply_chord(app, nested=True))
    (claim,) = await store.add_chord_parts([ours(index, index) for index in range(3)])
    assert claim.header is not None
    assert json.loads(claim.header) == await asyncio.to_thread(shape, app)


async def test_a_plain_header_has_no_shape(app: Any, store: Store) -> None:
    await asyncio.to_thread(lambda: apply_chord(app, nested=False))
    (claim,) = await store.add_chord_parts([ours(index, index) for index in range(3)])
    assert claim.header is None
    assert called(app) == []


async def test_a_chord_whose_claimant_of_ours_died_is_completed_by_stock(app: Any, store: Store) -> None:
    store.chord_claim = 1.0
    await store.set_chord_size("g", 1)
    assert len(await store.add_chord_parts([ours(0, 7)])) == 1
    while await store.claimed_chords(["g"]):
        await asyncio.sleep(0.05)
    await asyncio.to_thread(bring, app, 0, 7)
    assert called(app) == [[7]]


@pytest.mark.parametrize("kind", ["sqlite", "memory"], indirect=True)
async def test_a_part_that_was_delivered_again_waits_for_the_claim(app: Any, store: Store) -> None:
    store.chord_claim = 1.0
    await store.set_chord_size("g", 1)
    assert len(await store.add_chord_parts([ours(0, 7)])) == 1
    again = {"delivery_info": {"redelivered": True}}
    await asyncio.to_thread(lambda: bring(app, 0, 7, **again))
    assert called(app) == [[7]]


@pytest.mark.parametrize("kind", ["sqlite", "memory"], indirect=True)
async def test_a_body_that_cannot_be_published_fails(app: Any, store: Store) -> None:
    await store.set_chord_size("g", 1)
    body = body_of(app).set(serializer="none such")
    await asyncio.to_thread(lambda: bring(app, 0, 7, chord=body))
    meta = await asyncio.to_thread(app.backend.get_task_meta, "body")
    assert meta["status"] == "FAILURE"
    assert "Callback error" in str(meta["result"])
    assert await store.add_chord_parts([ours(0, 7)]) == []
