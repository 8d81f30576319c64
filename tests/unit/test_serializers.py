"""Tasks whose arguments travel otherwise than as JSON, from the call to the function, and what their records say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError, SerializerNotInstalled
from pydantic import BaseModel

from celeriac import Celery
from celeriac.errors import ConfigurationError, ContentDisallowed, InvalidArguments
from celeriac.worker.embedded import run_embedded


class Item(BaseModel):
    name: str
    at: datetime


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


ITEM = Item(name="ż", at=datetime(2026, 1, 2, tzinfo=UTC))
ACCEPTED = ["json", "msgpack", "yaml", "pickle"]


def new_app(url: str, **conf: Any) -> Celery:
    app = Celery("serial", broker=url, backend=url, set_as_current=False)
    app.conf.update({"accept_content": ACCEPTED, **conf})
    return app


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, database_url: str) -> str:
    return f"memory://{uuid4()}" if request.param == "memory" else database_url


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=2):
        yield


@pytest.mark.parametrize(
    ("serializer", "compression"),
    [("json", "gzip"), ("msgpack", None), ("yaml", "bzip2"), ("pickle", None), ("pickle", "lzma")],
)
@pytest.mark.parametrize("chosen_by", ["call", "task", "setting"])
async def test_typed_arguments_arrive(
    url: str, serializer: str, compression: str | None, chosen_by: str
) -> None:
    options: dict[str, Any] = {"serializer": serializer, "compression": compression}
    conf = {f"task_{name}": value for name, value in options.items()} if chosen_by == "setting" else {}
    app = new_app(url, **conf)
    seen: list[Any] = []

    @app.task(name="typed", **(options if chosen_by == "task" else {}))
    async def typed(item: Item, count: int, *, tags: list[str]) -> Item:
        seen.append((item, count, tags))
        return item

    asked = options if chosen_by == "call" else {}
    async with working(app):
        handle = await typed.using(**asked).enqueue(ITEM, 2, tags=["a"])
        assert await handle.result(10) == ITEM
        blocking = await asyncio.to_thread(typed.apply_async, (ITEM, 2), {"tags": ["a"]}, **asked)
        assert await app.handle(blocking.id).result(10)
        records = [await app.handle(task_id).record() for task_id in (handle.id, blocking.id)]
    assert seen == [(ITEM, 2, ["a"])] * 2
    for record in records:
        assert record.args[0]["name"] == "ż"
        assert record.args[1] == 2
        assert record.kwargs == {"tags": ["a"]}
        assert record.queue == "celery"


async def test_pickle_carries_what_json_cannot(url: str) -> None:
    app = new_app(url)
    seen: list[Any] = []

    @app.task(serializer="pickle")
    async def untyped(*values: Any) -> None:
        seen.extend(values)

    given = ({1, 2}, 3 + 4j, (5, 6), ITEM)
    async with working(app):
        handle = await untyped.enqueue(*given)
        await handle.result(10)
        record = await handle.record()
        with pytest.raises(EncodeError):
            await untyped.enqueue(lambda: None)
        with pytest.raises((EncodeError, TypeError)):
            await untyped.using(serializer="msgpack").enqueue(Opaque())
    assert seen == list(given)
    assert record.args[:3] == [[1, 2], "3+4j", [5, 6]]


async def test_arguments_that_do_not_fit_are_refused_for_pickle_too(url: str) -> None:
    app = new_app(url)

    @app.task(serializer="pickle")
    async def one(value: int) -> None: ...

    async with app:
        with pytest.raises(InvalidArguments):
            await one.enqueue(1, 2)  # type: ignore[call-arg]
        assert await app.queue_size("celery") == 0


async def test_what_is_not_accepted_becomes_a_dead_letter_and_says_so(url: str) -> None:
    app = new_app(url, accept_content=["json"])

    @app.task(name="any")
    async def anything(value: Any) -> None: ...

    async with working(app):
        handle = await anything.using(serializer="pickle").enqueue({1})
        with pytest.raises(ContentDisallowed, match=r"application/x-python-serialize.*accept_content"):
            await handle.result(10)
        async with asyncio.timeout(5):
            while not (letters := await app.broker.dead_letters()):
                await asyncio.sleep(0.01)  # the record comes first, so that nobody waits for it in vain
        [letter] = letters
        assert letter.task_id == handle.id
        assert letter.reason == "The content type 'application/x-python-serialize' is not in accept_content."


async def test_serializers_and_compressions_that_do_not_exist(url: str) -> None:
    app = new_app(url)

    @app.task
    async def task() -> None: ...

    async with app:
        with pytest.raises(SerializerNotInstalled, match="nonesuch"):
            await task.using(serializer="nonesuch").enqueue()
        with pytest.raises(ConfigurationError, match="nonesuch"):
            await task.using(compression="nonesuch").enqueue()


#: How a call may ask for a place, a time and so on, and what its record says then.
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "queue": {"queue": "elsewhere"},
    "naive eta": {"eta": datetime(2031, 1, 2, 3, 4, 5)},  # noqa: DTZ001
    "countdown": {"countdown": 60},
    "expires": {"expires": 60},
    "tree": {"root_id": "r", "parent_id": "p", "group_id": "g"},
    "pickle": {"serializer": "pickle"},
    "exchange": {"exchange": "direct-one", "routing_key": "the-key"},
    "topic": {"queue": "topical"},
    "protocol 1": {},
}


@pytest.mark.parametrize("how", ASKED)
async def test_every_way_to_publish_starts_the_same_record(url: str, how: str) -> None:

    queues = [
        Queue("celery", Exchange("celery"), "celery"),
        Queue("keyed", Exchange("direct-one"), "the-key"),
        Queue("topical", Exchange("subjects", "topic"), "a.b"),
    ]
    app = new_app(url, task_queues=queues, task_protocol=1 if how == "protocol 1" else 2)

    @app.task(name="noted")
    async def noted(*values: Any, **named: Any) -> None: ...

    options = ASKED[how]
    args, kwargs = (1, (2, "ż")), {"a": {"b": None}}
    async with app:
        ids = [
            (await noted.using(**options).enqueue(*args, **kwargs)).id,
            (await app.enqueue("noted", args, kwargs, **options)).id,
            (await asyncio.to_thread(noted.apply_async, args, kwargs, **options)).id,
            (await asyncio.to_thread(app.send_task, "noted", args, kwargs, **options)).id,
        ]
        records = [await app.handle(task_id).record() for task_id in ids]
    shown = [
        (
            record.name,
            record.state,
            record.queue,
            json.dumps(record.args),
            json.dumps(record.kwargs),
            record.root_id == record.id or record.root_id,
            record.parent_id,
            record.group_id,
            record.retries,
            record.eta and record.eta.replace(second=0, microsecond=0),
            record.expires and record.expires.replace(second=0, microsecond=0),
        )
        for record in records
    ]
    assert len(set(shown)) == 1


async def test_results_are_json_and_another_serializer_is_refused_at_the_start(url: str) -> None:
    for opened in (new_app(url, result_serializer="pickle"), new_app(url, result_serializer="yaml")):
        with pytest.raises(ConfigurationError, match=r"result_serializer is '(pickle|yaml)'.*JSON.*Remove"):
            async with opened:
                pass


async def test_a_pickling_task_returns_what_its_annotation_names(url: str) -> None:
    app = new_app(url, task_serializer="pickle", result_serializer="json")

    @app.task
    async def unpacked(items: set[int], at: datetime) -> tuple[frozenset[int], datetime]:
        return frozenset(items), at

    async with working(app):
        handle = await unpacked.enqueue({1, 2}, ITEM.at)
        assert await handle.result(10) == (frozenset({1, 2}), ITEM.at)
        chained = await app.enqueue(unpacked.si({3}, ITEM.at) | unpacked.si({4}, ITEM.at))
        assert await chained.result(10) is not None


async def test_what_a_running_task_calls_travels_as_asked(url: str) -> None:
    """Celery's own ``apply_async`` in a coroutine, and the steps of a chain: published by the worker, natively."""
    app = new_app(url)
    seen: asyncio.Queue[Any] = asyncio.Queue()

    @app.task(name="last", serializer="pickle", compression="gzip")
    async def last(*values: Any) -> None:
        await seen.put(values)

    @app.task(name="first", serializer="yaml")
    async def first(number: int) -> int:
        last.apply_async(({number},), queue="aside")
        last.apply_async((number,), serializer="msgpack", exchange="keyed", routing_key="k")
        return number + 1

    app.conf.task_queues = [
        Queue("celery", Exchange("celery"), "celery"),
        Queue("aside", Exchange("aside"), "aside"),
        Queue("keyed", Exchange("keyed"), "k"),
    ]
    async with working(app):
        await (await app.enqueue(first.s(1) | last.s({"a"}))).result(10)
        found = [await asyncio.wait_for(seen.get(), 10) for _ in range(3)]
    assert ({1},) in found
    assert (1,) in found
    assert (2, {"a"}) in found
