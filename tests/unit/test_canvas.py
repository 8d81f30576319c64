"""A canvas that is enqueued from a loop, and run by a worker on the same loop: nothing of it may block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, TaskNotFound
from celeriac.handle import GroupHandle
from celeriac.stores.records import RecordFilter
from celeriac.worker.embedded import run_embedded


class Tasks:
    """The tasks of these tests, on one app."""

    def __init__(self, app: Celery) -> None:
        self.heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        heard = self.heard
        loop = asyncio.get_running_loop()

        @app.task(name="add")
        async def add(x: int, y: int) -> int:
            return x + y

        @app.task(name="add_in_thread")
        def add_in_thread(x: int, y: int) -> int:
            return x + y

        @app.task(name="total")
        async def total(values: list[int]) -> int:
            return sum(values)

        @app.task(name="boom")
        async def boom(*_args: Any) -> int:
            raise ValueError("boom")

        @app.task(name="old")
        async def old(task_id: str) -> None:
            heard.put_nowait(("old", task_id))

        @app.task(name="new")
        def new(request: Any, exc: Any, traceback: Any) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, ("new", (request.id, repr(exc))))

        @app.task(name="new_async")
        async def new_async(request: Any, exc: Any, traceback: Any) -> None:
            heard.put_nowait(("new_async", (request.id, repr(exc))))

        @app.task(name="replaced", bind=True)
        async def replaced(self: Any, x: int) -> int:
            raise self.replace(add.s(x, 100))

        @app.task(name="replaced_by_group", bind=True)
        async def replaced_by_group(self: Any, x: int) -> list[int]:
            raise self.replace(group(add.s(x, 1), add_in_thread.s(x, 2)))

        @app.task(name="extends", bind=True)
        async def extends(self: Any, x: int) -> int:
            self.add_to_chord(add.si(x, 100))
            return x

        @app.task(name="spawns", bind=True)
        async def spawns(self: Any) -> list[Any]:
            single = add.delay(1, 2)
            several = group(add.s(i, i) for i in range(3)).delay()
            return [single.id, [child.id for child in several]]

        self.add, self.add_in_thread, self.total, self.boom = add, add_in_thread, total, boom
        self.old, self.new, self.new_async = old, new, new_async
        self.replaced, self.replaced_by_group = replaced, replaced_by_group
        self.extends, self.spawns = extends, spawns


@pytest.fixture(params=["memory", "sqlite"])
def celery(request: pytest.FixtureRequest, database_url: str) -> Celery:
    url = f"memory://{uuid4()}" if request.param == "memory" else database_url
    app = Celery("canvas", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0
    return app


@pytest.fixture
async def tasks(celery: Celery) -> AsyncIterator[Tasks]:
    tasks = Tasks(celery)
    async with celery, run_embedded(celery, concurrency=20):
        yield tasks


async def test_a_chain_ends_with_its_last_task(celery: Celery, tasks: Tasks) -> None:
    handle = await celery.enqueue(chain(tasks.add.s(1, 2), tasks.add_in_thread.s(3), tasks.add.s(4)))
    assert await handle.result(5) == 10


async def test_the_end_of_a_chain_is_known_before_it_is_published(celery: Celery) -> None:
    tasks = Tasks(celery)
    async with celery:
        handle = await celery.enqueue(chain(tasks.add.s(1, 2), tasks.add.s(3)))
        assert await handle.state() == "PENDING"


async def test_a_group_has_the_results_of_its_members_in_order(celery: Celery, tasks: Tasks) -> None:
    handle = await celery.enqueue(group(tasks.add.s(i, i) for i in range(5)))
    assert isinstance(handle, GroupHandle)
    assert await handle.result(5) == [0, 2, 4, 6, 8]
    assert await handle.state() == "SUCCESS"
    with pytest.raises(TaskNotFound, match="members"):
        await handle.record()


async def test_a_group_raises_what_its_member_raised(celery: Celery, tasks: Tasks) -> None:
    handle = await celery.enqueue(group(tasks.add.s(1, 1), tasks.boom.s()))
    with pytest.raises(ValueError, match="boom"):
        await handle.result(5)
    assert await handle.state() == "FAILURE"


async def test_a_large_chord_is_counted_once_each(celery: Celery, tasks: Tasks) -> None:
    handle = await celery.enqueue(chord([tasks.add.s(i, i) for i in range(200)], tasks.total.s()))
    assert await handle.result(10) == 199 * 200


async def test_groups_chords_and_chains_nest(celery: Celery, tasks: Tasks) -> None:
    add, total = tasks.add, tasks.total
    upgraded = chain(add.s(1, 1), group(add.s(1), tasks.add_in_thread.s(2)), total.s(), add.s(1))
    assert await (await celery.enqueue(upgraded)).result(5) == 8
    of_chords = chord(
        [chord([add.s(1, 1), add.s(2, 2)], total.s()), chord([add.s(3, 3)], total.s())], total.s()
    )
    assert await (await celery.enqueue(of_chords)).result(5) == 12
    ends_in_group = chain(group(add.s(1, 1), add.s(2, 2)), total.s(), group(add.s(1), add.s(2)))
    assert await (await celery.enqueue(ends_in_group)).result(5) == [7, 8]


async def test_map_starmap_and_chunks(celery: Celery, tasks: Tasks) -> None:
    assert await (await celery.enqueue(tasks.add_in_thread.starmap([(1, 2), (3, 4)]))).result(5) == [3, 7]
    chunked = tasks.add_in_thread.chunks([(i, i) for i in range(4)], 2)
    handle = await celery.enqueue(chunked)
    assert isinstance(handle, GroupHandle)
    assert await handle.result(5) == [[0, 2], [4, 6]]


async def test_a_task_replaces_itself(celery: Celery, tasks: Tasks) -> None:
    assert await (await celery.enqueue(chain(tasks.replaced.s(1), tasks.add.s(1)))).result(5) == 102
    assert await (await celery.enqueue(chain(tasks.replaced_by_group.s(1), tasks.total.s()))).result(5) == 5
    in_chord = chord([tasks.replaced.s(1), tasks.add.s(1, 1)], tasks.total.s())
    assert await (await celery.enqueue(in_chord)).result(5) == 103


async def test_a_task_adds_to_its_chord(celery: Celery, tasks: Tasks) -> None:
    extended = chord([tasks.extends.s(1), tasks.add.s(1, 1)], tasks.total.s())
    assert await (await celery.enqueue(extended)).result(5) == 104


async def test_delay_in_a_coroutine_is_published_before_the_task_ends(celery: Celery, tasks: Tasks) -> None:
    single, several = await (await tasks.spawns.enqueue()).result(5)
    assert await celery.handle(single).result(5) == 3
    assert [await celery.handle(task_id).result(5) for task_id in several] == [0, 2, 4]
    parent = [(await celery.handle(task_id).record()).parent_id for task_id in several]
    assert len(set(parent)) == 1


@pytest.mark.parametrize("kind", ["old", "new", "new_async"])
async def test_errbacks_of_either_style_are_called(celery: Celery, tasks: Tasks, kind: str) -> None:
    handle = await celery.enqueue(tasks.boom.s().on_error(getattr(tasks, kind).s()))
    name, what = await asyncio.wait_for(tasks.heard.get(), 5)
    assert name == kind
    assert what == (handle.id if kind == "old" else (handle.id, "ValueError('boom')"))


async def test_a_chord_with_a_failed_part_fails_its_body_and_what_follows(
    celery: Celery, tasks: Tasks
) -> None:
    failing = chain(group(tasks.boom.s(), tasks.add.s(1, 1)), tasks.total.s(), tasks.add.s(1))
    handle = await celery.enqueue(failing)
    with pytest.raises(ChordError, match="boom"):
        await handle.result(5)


async def test_a_failed_chain_fails_its_end(celery: Celery, tasks: Tasks) -> None:
    handle = await celery.enqueue(chain(tasks.boom.s(), tasks.add.s(1), tasks.add.s(2)))
    with pytest.raises(ValueError, match="boom"):
        await handle.result(5)


async def test_the_owner_of_a_canvas_owns_its_end(celery: Celery, tasks: Tasks) -> None:
    handle = await celery.enqueue(group(tasks.add.s(1, 1), tasks.add.s(2, 2)), owner="ada")
    assert isinstance(handle, GroupHandle)
    assert {(await member.record()).owner for member in handle.members} == {"ada"}


async def test_a_canvas_that_cannot_be_published_leaves_nothing(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks(celery)

    async def refuse(_publications: Any) -> None:
        raise BrokerUnavailable("gone")

    async with celery:
        monkeypatch.setattr(celery.broker, "publish", refuse)
        with pytest.raises(BrokerUnavailable):
            await celery.enqueue(chain(tasks.add.s(1, 2), tasks.add.s(3)))
        with pytest.raises(BrokerUnavailable):
            await celery.enqueue(group(tasks.add.s(1, 2), tasks.add.s(3, 4)))
        assert (await celery.store.list(RecordFilter())).records == []


async def test_a_part_that_nobody_can_run_fails_its_chord(celery: Celery) -> None:
    celery.conf.celeriac_unknown_task_grace = 0.2
    tasks = Tasks(celery)
    async with celery, run_embedded(celery, concurrency=20):
        unknown = celery.signature("nobody.knows")
        handle = await celery.enqueue(chord([tasks.add.s(1, 1), unknown], tasks.total.s()))
        with pytest.raises(ChordError, match="never registered"):
            await handle.result(10)


async def test_a_cancelled_part_fails_its_chord(celery: Celery) -> None:
    tasks = Tasks(celery)
    async with celery:
        part = tasks.add.s(2, 2).set(task_id="cancelled-part")
        handle = await celery.enqueue(chord([tasks.add.s(1, 1), part], tasks.total.s()))
        await celery.handle("cancelled-part").cancel()
        async with run_embedded(celery, concurrency=20):
            with pytest.raises(ChordError, match="cancelled-part"):
                await handle.result(10)


async def test_the_errbacks_of_a_failed_body_are_its_children(celery: Celery, tasks: Tasks) -> None:
    body = tasks.total.s().on_error(tasks.old.s())
    handle = await celery.enqueue(chord([tasks.add.s(1, 1), tasks.boom.s()], body))
    assert await asyncio.wait_for(tasks.heard.get(), 5) == ("old", handle.id)
    with pytest.raises(ChordError):
        await handle.result(5)
    # Celery calls errbacks of the old style as a group.
    [[_group, [[[errback, _parent], _none]]]] = (await handle.record()).children or []
    assert (await celery.handle(errback).record()).name == "old"


async def test_a_body_that_the_broker_refuses_for_good_fails(
    celery: Celery, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = celery.broker.publish

    async def refuse_bodies(publications: Any) -> None:
        if any(each.message.headers["task"] == "total" for each in publications):
            error = BrokerUnavailable("too large")
            error.permanent = True
            raise error
        await publish(publications)

    monkeypatch.setattr(celery.broker, "publish", refuse_bodies)
    handle = await celery.enqueue(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total.s()))
    with pytest.raises(ChordError, match="too large"):
        await handle.result(5)
