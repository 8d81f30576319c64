"""What travels with a task besides its arguments: owner, request id, and context variables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chain, chord, group
from celery.signals import before_task_publish

from celeriac import Celery, TaskContext, propagation
from celeriac.errors import ConfigurationError, InvalidArguments
from celeriac.propagation import Propagation, owner, request_id
from celeriac.worker.embedded import run_embedded

tenant: ContextVar[Any] = ContextVar("tenant")
other: ContextVar[Any] = ContextVar("other")
not_a_variable = 5

TENANT = f"{__name__}:tenant"


@pytest.fixture(params=["memory", "sqlite"])
def celery(request: pytest.FixtureRequest, database_url: str) -> Celery:
    url = f"memory://{uuid4()}" if request.param == "memory" else database_url
    app = Celery("unit", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_propagate = [TENANT]
    app.conf.celeriac_shutdown_grace = 1.0
    return app


@pytest.fixture(autouse=True)
def _clean() -> None:
    """Fixtures and tests do not share contexts, but tests of one thread do."""
    propagation.reset()


@asynccontextmanager
async def working(app: Celery, concurrency: int = 20) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=concurrency):
        yield


def seen() -> list[Any]:
    return [owner.get(), request_id.get(), tenant.get("none")]


async def in_request(
    call: Any, who: str | None = "ann", asked: str | None = "r-1", house: Any = "blue"
) -> Any:
    """Await the coroutine function in a context of its own, as a request has."""

    async def serve() -> Any:
        owner.set(who)
        request_id.set(asked)
        if house is not None:
            tenant.set(house)
        return await call()

    return await asyncio.create_task(serve())


async def test_the_worker_sees_what_the_request_had(celery: Celery) -> None:
    @celery.task
    async def coroutine() -> list[Any]:
        return seen()

    @celery.task
    def function() -> list[Any]:
        return seen()

    @celery.task
    async def words() -> AsyncIterator[list[Any]]:
        yield seen()

    @celery.task
    async def told(context: TaskContext) -> list[Any]:
        return [context.owner, context.request_id]

    async with working(celery):
        for task in (coroutine, function):
            handle = await in_request(task.enqueue)
            assert await handle.result(5) == ["ann", "r-1", "blue"]
            assert (await handle.record()).owner == "ann"
            plain = await task.enqueue()
            assert await plain.result(5) == [None, None, "none"]
            assert (await plain.record()).owner is None
        handle = await in_request(words.enqueue)
        await handle.result(5)
        values = [event.data async for event in handle.events() if event.kind == "value"]
        assert values == [["ann", "r-1", "blue"]]
        assert await (await in_request(told.enqueue)).result(5) == ["ann", "r-1"]
        assert await (await told.enqueue()).result(5) == [None, None]


async def test_children_retries_and_late_calls_inherit(celery: Celery) -> None:
    @celery.task
    async def child() -> list[Any]:
        return seen()

    @celery.task
    async def parent() -> list[str]:
        enqueued = await child.enqueue()
        return [enqueued.id, child.delay().id, child.apply_async().id]

    @celery.task
    def from_thread() -> list[str]:
        return [child.delay().id]

    @celery.task(bind=True, max_retries=1, default_retry_delay=0)
    async def again(self: Any) -> list[Any]:
        if self.request.retries == 0:
            raise self.retry()
        return seen()

    @celery.task(autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0, bind=True)
    def automatic(self: Any) -> list[Any]:
        if self.request.retries == 0:
            raise ValueError
        return seen()

    async with working(celery):
        for task in (parent, from_thread):
            for child_id in await (await in_request(task.enqueue)).result(5):
                handle = celery.handle(child_id)
                assert await handle.result(5) == ["ann", "r-1", "blue"]
                assert (await handle.record()).owner == "ann"
        for retried in (again, automatic):
            handle = await in_request(retried.enqueue)
            assert await handle.result(5) == ["ann", "r-1", "blue"]
            assert (await handle.record()).owner == "ann"


async def test_canvas_inherits_to_its_end(celery: Celery) -> None:
    got: dict[str, list[Any]] = {}

    @celery.task
    async def step(name: str) -> str:
        got[name] = seen()
        return name

    @celery.task
    async def body(names: list[str]) -> list[Any]:
        got["body"] = seen()
        return seen()

    @celery.task
    async def fail() -> None:
        raise ValueError

    @celery.task(bind=True)
    async def replaced(self: Any) -> None:
        raise self.replace(step.si("10"))

    errors: asyncio.Event = asyncio.Event()

    @celery.task
    async def errback(task_id: str) -> None:
        got["errback"] = seen()
        errors.set()

    everything = ["ann", "r-1", "blue"]
    async with working(celery):
        canvas = chain(step.si("1"), step.si("2"), chord([step.si("3"), step.si("4")], body.s()))
        handle = await in_request(lambda: celery.enqueue(canvas))
        record = await handle.record()  # made ahead
        assert record.owner == "ann"
        assert await handle.result(5) == everything
        parts = await in_request(lambda: celery.enqueue(group(step.si("5"), step.si("6"))))
        assert await parts.result(5) == ["5", "6"]
        many = await in_request(lambda: celery.enqueue(chord([step.si("9")] * 30, body.s())))
        assert await many.result(5) == everything
        assert await (await in_request(replaced.enqueue)).result(5) == "10"
        await in_request(lambda: step.using(link=step.si("7")).enqueue("8"))
        await in_request(lambda: fail.using(link_error=errback.s()).enqueue())
        await asyncio.wait_for(errors.wait(), 5)
    assert got == dict.fromkeys([*"123456789", "10", "body", "errback"], everything)


async def test_an_owner_that_is_given_wins_and_none_means_nobody(celery: Celery) -> None:
    @celery.task
    async def look() -> list[Any]:
        return seen()

    @celery.task
    async def parent() -> str:
        return (await look.enqueue()).id

    async with working(celery):
        for given, expected in (("bob", "bob"), (None, None), (7, "7"), (UUID(int=1), str(UUID(int=1)))):
            handle = await in_request(lambda given=given: parent.using(owner=given).enqueue())
            child = celery.handle(await handle.result(5))
            assert await child.result(5) == [expected, "r-1", "blue"]
            for each in (handle, child):
                assert (await each.record()).owner == expected
        steps = chain(look.si(), look.si().set(owner="eve"), look.si())
        last = await in_request(lambda: celery.enqueue(steps, owner=None))
        assert await last.result(5) == ["eve", "r-1", "blue"]
        for wrong in ("", 1.5, True, b"ann", "a\nb", "\ud800"):
            with pytest.raises(InvalidArguments, match="owner of a task"):
                await look.using(owner=wrong).enqueue()  # type: ignore[arg-type]


async def test_celerys_synchronous_path_says_the_same(celery: Celery) -> None:
    @celery.task
    async def look() -> list[Any]:
        return seen()

    def call() -> list[str]:
        owner.set("ann")
        request_id.set("r-1")
        tenant.set("blue")
        pair = chain(look.si(), look.si())()
        return [
            look.delay().id,
            look.apply_async().id,
            celery.send_task(look.name).id,
            pair.id,
            look.apply_async(owner="bob").id,
            look.apply_async(owner=None).id,
        ]

    async with working(celery):
        ids = await asyncio.to_thread(call)
        for task_id, expected in zip(ids, ["ann"] * 4 + ["bob", None], strict=True):
            assert await celery.handle(task_id).result(5) == [expected, "r-1", "blue"]
            assert (await celery.handle(task_id).record()).owner == expected


async def test_only_what_is_set_is_in_the_message(celery: Celery) -> None:
    @celery.task
    async def look() -> None: ...

    messages: list[dict[str, Any]] = []

    def note(headers: dict[str, Any], **_: Any) -> None:
        messages.append({name: value for name, value in headers.items() if name.startswith("celeriac")})

    before_task_publish.connect(note)
    try:
        async with celery:
            await look.enqueue()
            await in_request(look.enqueue, None, None, None)
            await in_request(look.enqueue, "ann", None, None)
            await in_request(look.enqueue, None, "r-1", None)
            await in_request(look.enqueue, None, None, {"id": 1})
    finally:
        before_task_publish.disconnect(note)
    assert messages == [
        {},
        {},
        {"celeriac_owner": "ann"},
        {"celeriac_request_id": "r-1"},
        {"celeriac_context": {TENANT: {"id": 1}}},
    ]


async def test_a_value_that_json_cannot_express_is_refused_by_the_variables_name(celery: Celery) -> None:
    @celery.task
    async def look() -> list[Any]:
        return seen()

    async with working(celery):
        for value in (object(), {1, 2}, float("nan"), b"x"):
            with pytest.raises(ConfigurationError, match=f"names {TENANT}, whose value is a "):
                await in_request(look.enqueue, house=value)
        changing = {"a": [1]}

        async def change() -> Any:
            waiting = asyncio.ensure_future(look.enqueue())
            await asyncio.sleep(0)
            changing["a"].append(2)
            return await waiting

        assert (await (await in_request(change, house=changing)).result(5))[2] == {"a": [1]}


@pytest.mark.parametrize(
    "path, complaint",
    [
        ("nowhere.at_all:tenant", "names nowhere.at_all:tenant, which cannot be imported"),
        (f"{__name__}:missing", "which cannot be imported"),
        (f"{__name__}:not_a_variable", "which is a int and no ContextVar"),
        ("tenant", 'lists "module:variable" paths'),
    ],
)
async def test_a_path_that_is_no_variable_is_refused_at_the_start(path: str, complaint: str) -> None:
    app = Celery("wrong", broker=f"memory://{uuid4()}", set_as_current=False)
    app.conf.celeriac_propagate = [path]
    with pytest.raises(ConfigurationError, match=complaint):
        async with app:
            pass


@pytest.mark.parametrize(
    "hostile",
    [
        {"celeriac_owner": 5, "celeriac_request_id": ["x"], "celeriac_context": "x"},
        {"celeriac_owner": "", "celeriac_request_id": "a\nb", "celeriac_context": {"x": 1}},
        {"celeriac_owner": {}, "celeriac_request_id": "é" * 200, "celeriac_context": [TENANT]},
        {"celeriac_owner": None, "celeriac_request_id": None, "celeriac_context": None},
        {"celeriac_owner": "\ud800", "celeriac_request_id": "\x7f"},
        {"celeriac_owner": [], "celeriac_context": {f"{__name__}:other": "not asked for"}},
    ],
)
async def test_headers_of_wrong_types_are_nothing(celery: Celery, hostile: dict[str, Any]) -> None:
    @celery.task
    async def look(context: TaskContext) -> list[Any]:
        return [*seen(), other.get("none"), context.owner, context.request_id]

    async with working(celery):
        handle = await look.using(headers=hostile).enqueue()
        assert await handle.result(5) == [None, None, "none", "none", None, None]


async def test_concurrent_tasks_do_not_see_each_others(celery: Celery) -> None:
    @celery.task
    async def look() -> list[Any]:
        before = seen()
        await asyncio.sleep(0.01)
        assert seen() == before
        return before

    async with working(celery):
        handles = [await in_request(look.enqueue, f"u{n}", f"r{n}", n) for n in range(20)]
        for n, handle in enumerate(handles):
            assert await handle.result(5) == [f"u{n}", f"r{n}", n]


async def test_a_replay_belongs_to_whom_the_task_belonged(celery: Celery) -> None:
    @celery.task
    async def look() -> list[Any]:
        return seen()

    async with working(celery):
        handle = await in_request(look.enqueue)
        await handle.result(5)
        again = await celery.replay(await handle.record())
        async for _ in again.events():
            pass
        assert await again.result(5) == ["ann", None, "none"]


def test_eager_calls_belong_to_the_owner_given() -> None:
    app = Celery("eager", broker=f"memory://{uuid4()}", set_as_current=False)
    app.conf.task_always_eager = True

    @app.task
    async def look(context: TaskContext) -> list[Any]:
        return [owner.get(), context.owner]

    async def main() -> None:
        assert await (await look.using(owner="ann").enqueue()).result() == ["ann", "ann"]
        assert await (await look.enqueue()).result() == [None, None]

    app.finalize()
    _ = app.settings
    asyncio.run(main())


def test_a_context_that_runs_one_task_after_another_keeps_nothing() -> None:
    travelling = Propagation([TENANT])
    travelling.restore_anew({"celeriac_owner": "ann", "celeriac_context": {TENANT: "blue"}})
    assert seen() == ["ann", None, "blue"]
    travelling.restore_anew({"celeriac_request_id": "r-2", "celeriac_context": {}})
    assert seen() == [None, "r-2", "none"]
    travelling.restore_anew({})
    assert seen() == [None, None, "none"]


async def test_the_fast_way_to_write_headers_has_them(celery: Celery) -> None:
    async with celery:
        calls = (await celery._connections.here()).calls

        async def build() -> Any:
            return calls.build("some.task", [1], {}, {})

        message = (await in_request(build, 'a"b', "r-1", {"n": 1})).publication.message
        assert json.loads(message.headers_json) == message.headers
        assert message.headers["celeriac_owner"] == 'a"b'
