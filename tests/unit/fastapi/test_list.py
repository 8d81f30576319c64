"""The list over HTTP, on the stores that last: its filters, and pages while tasks come and go."""

from __future__ import annotations

import random
from typing import Any

import pytest
from fastapi import FastAPI, Request

from celeriac.stores.records import Transition

pytestmark = pytest.mark.parametrize("celery", ["sqlite", "redis"], indirect=True)

_NOON = 1_700_000_000.0  # 2023-11-14T22:13:20Z


async def ids(server: Any, **query: Any) -> list[str]:
    answer = await server.http.get(f"{server.url}/tasks", params=query)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


@pytest.fixture
async def orders(feed: Any) -> None:
    """Six tasks that differ in everything that can be asked for."""
    for number, (name, queue, owner) in enumerate(
        [
            ("shop.add", "celery", "ann"),
            ("shop.add", "slow", "bob"),
            ("shop.mail", "celery", "ann"),
            ("shop.mail", "slow", "bob"),
            ("shop.add", "celery", None),
            ("shop.mail", "celery", None),
        ]
    ):
        args = f'["Order-{number}", "Müller"]' if number % 2 else f'["order-{number}"]'
        kwargs = '{"note": "50% off_all"}' if number == 4 else "{}"
        await feed.enqueued(
            f"t{number}", name=name, queue=queue, owner=owner, at=_NOON + number, args=args, kwargs=kwargs
        )
    await feed.state("t0", "STARTED", worker="w")
    await feed.succeeded("t1")
    await feed.failed("t2")
    await feed.state("t3", "REVOKED")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "543210"),
        ({"state": "PENDING"}, "54"),
        ({"state": "STARTED"}, "0"),
        ({"state": "SUCCESS"}, "1"),
        ({"state": "FAILURE"}, "2"),
        ({"state": "REVOKED"}, "3"),
        ({"state": "NEVER"}, ""),
        ({"name": "shop.mail"}, "532"),
        ({"name": "shop"}, ""),
        ({"queue": "slow"}, "31"),
        ({"owner": "ann"}, "20"),
        ({"owner": "nobody"}, ""),
        ({"since": "2023-11-14T22:13:22Z"}, "5432"),
        ({"until": "2023-11-14T22:13:22Z"}, "10"),
        ({"since": "2023-11-14T22:13:22"}, "5432"),
        ({"since": "2023-11-15T00:13:21+02:00", "until": "2023-11-14T22:13:24Z"}, "321"),
        ({"search": "order-3"}, "3"),
        ({"search": "ORDER"}, "543210"),
        ({"search": "Müller"}, "531"),
        ({"search": "50% off_"}, "4"),
        ({"search": "50%_off"}, ""),
        ({"search": "t4"}, "4"),
        ({"search": "shop.a"}, "410"),
        ({"search": ""}, "543210"),
        ({"name": "shop.mail", "queue": "celery", "state": "PENDING"}, "5"),
        ({"name": "shop.add", "owner": "bob", "search": "order", "state": "SUCCESS", "queue": "slow"}, "1"),
        ({"owner": "ann", "state": "SUCCESS"}, ""),
    ],
)
async def test_filters(server: Any, orders: None, query: dict[str, str], expected: str) -> None:
    assert await ids(server, **query) == [f"t{digit}" for digit in expected]


@pytest.mark.parametrize("query", [{}, {"name": "shop.add"}, {"owner": "ann"}])
async def test_a_walk_through_a_thousand_sees_each_old_task_once_while_others_come(
    server: Any, feed: Any, query: dict[str, str]
) -> None:
    def pending(task_id: str) -> Transition:
        more = {"args": "[1]", "kwargs": "{}", "owner": "ann"}
        return Transition(
            task_id=task_id, state="PENDING", at=next(clock), name="shop.add", queue="q", **more
        )

    clock = iter(range(1_700_000_000, 1_800_000_000))
    old = [f"old-{number}" for number in range(1000)]
    await feed.store.transition([pending(task_id) for task_id in old])
    dice = random.Random(1)
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor is not None:
        answer = await server.http.get(
            f"{server.url}/tasks", params={**query, "limit": 50, **({"cursor": cursor} if cursor else {})}
        )
        page = answer.json()
        seen += [item["id"] for item in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
        # Newer ones come, and older ones go on, in states and out of the list of what waits.
        await feed.store.transition([pending(f"new-{pages}-{number}") for number in range(7)])
        await feed.store.transition(
            [
                Transition(task_id=task_id, state="SUCCESS", at=next(clock), result="1")
                for task_id in dice.sample(old, 20)
            ]
        )

    assert seen == old[::-1]
    assert pages == 20


async def test_a_page_that_was_read_before_a_deletion_goes_on_behind_it(server: Any, feed: Any) -> None:
    for number in range(6):
        await feed.enqueued(f"t{number}")
    first = (await server.http.get(f"{server.url}/tasks", params={"limit": 2})).json()

    await feed.store.forget(["t4", "t3"])

    assert await ids(server, cursor=first["next_cursor"]) == ["t2", "t1", "t0"]


async def test_a_caller_pages_through_their_own(celery: Any, feed: Any, serving: Any) -> None:
    def caller(request: Request) -> str:
        return request.headers["x-user"]

    app = FastAPI(lifespan=celery.lifespan)
    app.include_router(celery.router(owner=caller), prefix="/tasks")
    for number in range(20):
        await feed.enqueued(f"t{number}", owner=["ann", "bob"][number % 2])
    async with serving(app) as server:
        seen: list[str] = []
        cursor = None
        while not seen or cursor:
            query = {"limit": 3, "owner": "bob"} | ({"cursor": cursor} if cursor else {})
            answer = await server.http.get(f"{server.url}/tasks", params=query, headers={"x-user": "ann"})
            seen += [item["id"] for item in answer.json()["items"]]
            cursor = answer.json()["next_cursor"]

    assert seen == [f"t{number}" for number in range(18, -1, -2)]
