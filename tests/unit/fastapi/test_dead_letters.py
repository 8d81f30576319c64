"""Dead letters over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Depends

from celeriac import Celery
from celeriac.brokers.base import Settlement
from celeriac.protocol.settlement import Action

STORES = pytest.mark.parametrize("celery", ["memory", "sqlite", "redis"], indirect=True)


async def bury(celery: Celery, **options: Any) -> str:
    """Enqueue a task, and give its message up as a worker does that has had it too often."""
    handle = await celery.enqueue("shop.add", (1, 2), **options)
    (delivery,) = (await celery.broker.receive(["celery"], 1)).deliveries
    await celery.broker.settle([Settlement(delivery.tag, Action.DEAD_LETTER, reason="killed its workers")])
    return handle.id


@STORES
async def test_they_are_listed_and_replayed(celery: Celery, client: Any, feed: Any) -> None:
    task_id = await bury(celery)
    await feed.state(task_id, "FAILURE", result='{"exc_type": "WorkerLostError", "exc_message": ["x"]}')
    http = client(insecure=True)

    (letter,) = (await http.get("/tasks/dead-letters")).json()["items"]
    assert letter["task_id"] == task_id
    assert letter["name"] == "shop.add"
    assert letter["queue"] == "celery"
    assert letter["reason"] == "killed its workers"
    assert letter["deliveries"] == 1
    assert (await http.get("/tasks/dead-letters?queue=other")).json() == {"items": []}

    answer = await http.post("/tasks/dead-letters/replay", json={"ids": [letter["id"], "999999"]})

    assert answer.status_code == 202
    assert answer.json() == {"replayed": 1}
    assert (await http.get("/tasks/dead-letters")).json() == {"items": []}
    # A worker that dies with it leaves a record that has not ended.
    assert (await http.get(f"/tasks/{task_id}")).json()["state"] == "PENDING"
    assert await celery.queue_size("celery") == 1


async def test_replay_is_closed_by_default(celery: Celery, client: Any) -> None:
    await bury(celery)
    answer = await client().post("/tasks/dead-letters/replay", json={"ids": ["1"]})
    assert answer.status_code == 403
    assert len(await celery.dead_letters()) == 1


async def test_each_caller_sees_and_replays_their_own(celery: Celery, client: Any) -> None:
    anns, bobs = await bury(celery, owner="ann"), await bury(celery, owner="bob")
    http = client(owner=Depends(lambda: "ann"))
    (mine,) = (await http.get("/tasks/dead-letters?limit=1")).json()["items"]
    assert mine["task_id"] == anns
    everyones = [letter.id for letter in await celery.dead_letters()]
    answer = await http.post("/tasks/dead-letters/replay", json={"ids": everyones})
    assert answer.json() == {"replayed": 1}
    assert [letter.task_id for letter in await celery.dead_letters()] == [bobs]


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": "1"}, {"ids": [None]}, {"ids": ["x"] * 1001}])
async def test_a_wrong_body_is_refused(client: Any, body: dict[str, Any]) -> None:
    answer = await client(insecure=True).post("/tasks/dead-letters/replay", json=body)
    assert answer.status_code == 422
