"""``Idempotency-Key``: what a key stands for, and what becomes of one whose publisher fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header

from celeriac import Celery
from celeriac.calls import new_id
from celeriac.errors import BrokerUnavailable, KeyReused, PublishTimeout, StoreUnavailable
from celeriac.fastapi.idempotency import KeyedCall

SUM = {"x": 1, "y": 2}


async def user(x_user: Annotated[str, Header()] = "ann") -> str:
    return x_user


def exposing(celery: Celery, **options: Any) -> FastAPI:
    router = celery.router(owner=Depends(user))
    router.expose(celery.tasks["shop.add"], "/sums", **options)
    app = FastAPI()
    app.include_router(router, prefix="/tasks")
    return app


def key(text: str, **more: str) -> dict[str, str]:
    return {"Idempotency-Key": text, **more}


async def test_the_same_key_and_body_are_the_same_task(client: Any, celery: Celery) -> None:
    http = client(exposing(celery))

    first = await http.post("/tasks/sums", json=SUM, headers=key("a"))
    second = await http.post("/tasks/sums", json={"y": 2, "x": "1"}, headers=key("a"))
    other = await http.post("/tasks/sums", json=SUM, headers=key("b"))

    assert first.json() == second.json()
    assert first.headers["location"] == second.headers["location"]
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert other.json()["task_id"] != first.json()["task_id"]
    assert await celery.queue_size("celery") == 2
    record = (await celery.store.get([first.json()["task_id"]])).popitem()[1]
    assert (record.owner, record.kwargs) == ("ann", SUM)


async def test_another_body_is_a_conflict(client: Any, celery: Celery) -> None:
    http = client(exposing(celery))
    await http.post("/tasks/sums", json=SUM, headers=key("a"))

    answer = await http.post("/tasks/sums", json={"x": 1, "y": 3}, headers=key("a"))

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:celeriac:problem:idempotency-key-reused"
    assert await celery.queue_size("celery") == 1


async def test_everybody_has_keys_of_their_own(client: Any, celery: Celery) -> None:
    http = client(exposing(celery))

    ann = await http.post("/tasks/sums", json=SUM, headers=key("a"))
    bob = await http.post("/tasks/sums", json={"x": 5, "y": 5}, headers=key("a", **{"X-User": "bob"}))

    assert ann.status_code == bob.status_code == 202
    assert ann.json()["task_id"] != bob.json()["task_id"]


async def test_every_task_has_keys_of_its_own(client: Any, celery: Celery) -> None:
    @celery.task
    async def double(x: int) -> int:
        return 2 * x

    router = celery.router(insecure=True)
    router.expose(celery.tasks["shop.add"], "/sums")
    router.expose(double, "/doubles")
    app = FastAPI()
    app.include_router(router, prefix="/tasks")
    http = client(app)

    answers = [
        await http.post("/tasks/sums", json=SUM, headers=key("a")),
        await http.post("/tasks/doubles", json={"x": 1}, headers=key("a")),
    ]

    assert [answer.status_code for answer in answers] == [202, 202]


@pytest.mark.parametrize("text", ["", "k" * 256, "a\tb", "a\x01b", "schlüssel".encode("latin-1")])
async def test_a_malformed_key_is_refused(client: Any, celery: Celery, text: Any) -> None:
    answer = await client(exposing(celery)).post("/tasks/sums", json=SUM, headers={"Idempotency-Key": text})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]
    assert await celery.queue_size("celery") == 0


@pytest.mark.parametrize("text", ["k" * 255, '"8e03978e-40d5-43e8-bc93-6894a57f9324"', "a b"])
async def test_a_key_may_be_any_printable_text(client: Any, celery: Celery, text: str) -> None:
    http = client(exposing(celery))

    answers = [await http.post("/tasks/sums", json=SUM, headers=key(text)) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert await celery.queue_size("celery") == 1


async def test_a_key_may_be_required(client: Any, celery: Celery) -> None:
    app = exposing(celery, idempotency="required")
    http = client(app)

    without = await http.post("/tasks/sums", json=SUM)

    assert without.status_code == 422
    assert without.json()["detail"][0] == {
        "type": "missing",
        "loc": ["header", "Idempotency-Key"],
        "msg": "Field required",
        "input": None,
    }
    assert (await http.post("/tasks/sums", json=SUM, headers=key("a"))).status_code == 202
    (header,) = [
        each
        for each in app.openapi()["paths"]["/tasks/sums"]["post"]["parameters"]
        if each["name"] == "Idempotency-Key"
    ]
    assert header["required"] is True


async def test_keys_may_be_off(client: Any, celery: Celery) -> None:
    app = exposing(celery, idempotency="off")
    http = client(app)

    for _ in range(2):
        assert (await http.post("/tasks/sums", json=SUM, headers=key("a"))).status_code == 202

    assert await celery.queue_size("celery") == 2
    operation = app.openapi()["paths"]["/tasks/sums"]["post"]
    assert "Idempotency-Key" not in str(operation)
    assert "409" not in operation["responses"]


async def test_a_task_that_runs_here_and_now_has_no_use_for_a_key(client: Any, celery: Celery) -> None:
    celery.conf.task_always_eager = True
    http = client(exposing(celery))

    answers = [await http.post("/tasks/sums", json=SUM, headers=key("a")) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert await celery.queue_size("celery") == 0


async def test_a_publish_that_fails_frees_the_key(
    client: Any, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = client(exposing(celery))

    async def gone(*_: Any) -> None:
        raise BrokerUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(celery.broker, "publish", gone)
        failed = await http.post("/tasks/sums", json=SUM, headers=key("a"))
    assert failed.status_code == 503
    assert (await http.get("/tasks")).json()["items"] == []

    answer = await http.post("/tasks/sums", json=SUM, headers=key("a"))
    assert answer.status_code == 202
    assert "idempotency-replayed" not in answer.headers
    assert await celery.queue_size("celery") == 1


async def test_a_publish_that_may_have_worked_keeps_the_key(
    client: Any, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record tells: it was written together with the message."""
    http = client(exposing(celery))
    publish = celery.broker.publish

    async def late(*args: Any) -> None:
        await publish(*args)
        raise PublishTimeout

    with monkeypatch.context() as patch:
        patch.setattr(celery.broker, "publish", late)
        unknown = await http.post("/tasks/sums", json=SUM, headers=key("a"))
    again = await http.post("/tasks/sums", json=SUM, headers=key("a"))

    assert (unknown.status_code, again.status_code) == (503, 202)
    assert await celery.queue_size("celery") == 1


# -- the call itself -----------------------------------------------------------------------------------------------


class Publisher:
    """Counts what it publishes; ``outcome`` is called before each record is written."""

    def __init__(self, feed: Any, outcome: Callable[[], Any] | None = None) -> None:
        self.ids: list[str] = []
        self.feed = feed
        self.outcome = outcome

    async def __call__(self, task_id: str, _seconds: float) -> None:
        self.ids.append(task_id)
        if self.outcome is not None:
            await self.outcome()
        await self.feed.enqueued(task_id)


def call(celery: Celery, publish: Any, *, fingerprint: str = "print", deadline: float = 0.2) -> KeyedCall:
    return KeyedCall(
        store=celery.store,
        key="key",
        fingerprint=fingerprint,
        deadline=deadline,
        expires=60.0,
        publish=publish,
    )


async def test_requests_that_come_meanwhile_wait_for_the_first(celery: Celery, feed: Any) -> None:
    hold = asyncio.Event()
    publisher = Publisher(feed, hold.wait)
    first = asyncio.create_task(call(celery, publisher, deadline=20).once())
    others = [asyncio.create_task(call(celery, publisher, deadline=20).once()) for _ in range(20)]
    while not publisher.ids:
        await asyncio.sleep(0)
    hold.set()

    task_id, record = await first
    assert record is None
    assert {(found, seen.id) for found, seen in await asyncio.gather(*others)} == {(task_id, task_id)}
    assert publisher.ids == [task_id]


async def test_of_many_who_find_a_dead_ones_key_one_publishes(celery: Celery, feed: Any) -> None:
    dead = new_id()
    await celery.store.claim_key("key", "print", dead, expires=60)
    publisher = Publisher(feed)

    found = await asyncio.gather(*(call(celery, publisher).once() for _ in range(20)))

    assert publisher.ids == [dead]
    assert {task_id for task_id, _ in found} == {dead}
    assert len([record for _, record in found if record is None]) == 1


async def test_who_takes_over_may_die_too(celery: Celery, feed: Any) -> None:
    dead = new_id()
    await celery.store.claim_key("key", "print", dead, expires=60)
    await celery.store.claim_key(f"key:{dead}:1", "print", new_id(), expires=60)
    publisher = Publisher(feed)

    assert await call(celery, publisher).once() == (dead, None)


async def test_who_takes_over_may_fail(celery: Celery, feed: Any) -> None:
    dead = new_id()
    await celery.store.claim_key("key", "print", dead, expires=60)

    async def gone(*_: Any) -> None:
        raise BrokerUnavailable

    with pytest.raises(BrokerUnavailable):
        await call(celery, gone).once()
    publisher = Publisher(feed)

    assert await call(celery, publisher).once() == (dead, None)


async def test_a_key_that_was_freed_meanwhile_is_claimed_anew(celery: Celery, feed: Any) -> None:
    failing = new_id()
    await celery.store.claim_key("key", "print", failing, expires=60)
    publisher = Publisher(feed)
    waiting = asyncio.create_task(call(celery, publisher).once())
    await asyncio.sleep(0)
    await celery.store.release_key("key", failing)

    task_id, record = await waiting
    assert record is None
    assert publisher.ids == [task_id]
    assert task_id != failing


async def test_another_call_is_told_at_once(celery: Celery, feed: Any) -> None:
    await call(celery, Publisher(feed)).once()

    with pytest.raises(KeyReused):
        await call(celery, Publisher(feed), fingerprint="another").once()


async def test_a_stuck_store_holds_a_request_no_longer_than_publishing_may_take(
    celery: Celery, feed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(feed)

    async def stuck(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(celery.store, "claim_key", stuck)
        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailable, match=r"0\.2 seconds"):
                await call(celery, publisher).once()
    assert publisher.ids == []

    async def refused(*_: Any) -> None:
        raise BrokerUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(celery.store, "forget", stuck)
        async with asyncio.timeout(10):
            with pytest.raises(BrokerUnavailable):
                await call(celery, refused).once()
