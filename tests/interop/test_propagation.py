"""What travels with tasks of ours does not disturb stock workers, and is not missed in messages of stock clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from celery import chain, chord
from tests.interop.redis_site import PATIENCE, Site

from celeriac import Celery
from celeriac.propagation import owner, request_id

pytestmark = pytest.mark.timeout(60)

STOCK = ("prefork", "threads", "solo")


@pytest.fixture(scope="module")
def site(redis_site: Site) -> Site:
    redis_site.shared("ours", *STOCK)
    return redis_site


@pytest.fixture(scope="module")
def made(site: Site) -> Celery:
    return site.our_client()


@pytest.fixture
async def app(made: Celery) -> AsyncIterator[Celery]:
    async with made:
        yield made


@contextmanager
def request_of_ann() -> Iterator[None]:
    tokens = owner.set("ann"), request_id.set("r-1")
    try:
        yield
    finally:
        owner.reset(tokens[0])
        request_id.reset(tokens[1])


@pytest.mark.parametrize("queue", STOCK)
async def test_a_stock_worker_runs_what_a_request_enqueues(app: Celery, queue: str) -> None:
    with request_of_ann():
        handle = await app.enqueue("add", (1, 2), queue=queue)
        retried = await app.enqueue("retry", (2,), queue=queue)
        parent = await app.enqueue("nested", (1, "ours"), queue=queue)
    assert await handle.result(PATIENCE) == 3
    assert await retried.result(PATIENCE) == 2
    child = app.handle(await parent.result(PATIENCE))
    assert await child.result(PATIENCE) == 2
    for each, expected in ((handle, "ann"), (retried, "ann"), (parent, "ann"), (child, None)):
        assert (await each.record()).owner == expected


@pytest.mark.parametrize("queue", STOCK)
async def test_canvas_goes_through_both_kinds_of_worker(app: Celery, queue: str) -> None:
    def add(*args: int, at: str) -> object:
        return app.signature("add", args, options={"queue": at})

    body = app.signature("total", (), options={"queue": "ours"})
    steps = chain(add(1, 2, at=queue), add(3, at="ours"), add(4, at=queue))
    with request_of_ann():
        last = await app.enqueue(steps)
        end = await app.enqueue(chord([add(1, 1, at=queue), add(2, 2, at="ours")], body))
    assert (await last.result(PATIENCE), await end.result(PATIENCE)) == (10, 6)
    for each in (last, end):  # recorded when the first task was published
        assert (await each.record()).owner == "ann"


async def test_a_stock_clients_tasks_are_nobodys(app: Celery, site: Site) -> None:
    client = site.stock_client()
    hostile = {"celeriac_owner": 5, "celeriac_request_id": {"a": 1}, "celeriac_context": "x"}
    named = {"celeriac_owner": "bob"}  # who may publish may say whose it is
    for headers, expected in (({}, None), (hostile, None), (named, "bob")):
        task_id = client("add.apply_async((1, 2), headers=headers).id", headers=headers)
        assert await asyncio.to_thread(client.result, task_id) == 3
        assert (await app.handle(task_id).record()).owner == expected
