from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest
from fastapi import Depends

from celeriac.errors import BrokerUnavailable


def nobody() -> None: ...


OPEN = [{"insecure": True}, {"dependencies": [Depends(nobody)]}, {"owner": Depends(lambda: "ann")}]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/tasks/t1/cancel"), ("POST", "/tasks/t1/retry"), ("DELETE", "/tasks/t1")]
)
async def test_commands_are_closed_by_default_and_say_how_to_open_them(
    client: Any, feed: Any, method: str, path: str
) -> None:
    await feed.enqueued()

    answer = await client().request(method, path)

    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    for option in ("dependencies", "owner", "insecure"):
        assert option in answer.json()["detail"]
    assert (await feed.store.get(["t1"]))["t1"].state == "PENDING"


@pytest.mark.parametrize("options", [{"dependencies": []}, {"insecure": False}])
async def test_an_empty_list_opens_nothing(client: Any, feed: Any, options: dict[str, Any]) -> None:
    await feed.enqueued()

    assert (await client(**options).post("/tasks/t1/cancel")).status_code == 403


@pytest.mark.parametrize("options", OPEN, ids=lambda options: next(iter(options)))
async def test_a_waiting_task_is_cancelled_at_once(client: Any, feed: Any, options: dict[str, Any]) -> None:
    await feed.enqueued(owner="ann")

    answer = await client(**options).post("/tasks/t1/cancel")

    assert answer.status_code == 202
    assert answer.json() == {"task_id": "t1", "state": "REVOKED", "cancelled": True}


async def test_a_running_task_is_marked(client: Any, feed: Any) -> None:
    await feed.started()
    http = client(insecure=True)

    answer = await http.post("/tasks/t1/cancel")

    assert answer.json() == {"task_id": "t1", "state": "STARTED", "cancelled": True}
    assert (await http.get("/tasks/t1")).json()["cancel_requested"] is True


async def test_a_finished_task_is_left_alone(client: Any, feed: Any) -> None:
    await feed.started()
    await feed.succeeded()

    answer = await client(insecure=True).post("/tasks/t1/cancel")

    assert answer.json() == {"task_id": "t1", "state": "SUCCESS", "cancelled": False}


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED", "SUCCESS"])
async def test_a_finished_task_is_enqueued_again_under_its_id(
    client: Any, feed: Any, celery: Any, state: str
) -> None:
    await feed.started()
    await feed.state(
        "t1", state, result='{"exc_type": "ValueError", "exc_message": ["bad"], "exc_module": "x"}'
    )

    answer = await client(insecure=True).post("/tasks/t1/retry")

    assert answer.status_code == 202
    assert answer.json() == {"task_id": "t1", "state": "PENDING"}
    assert await celery.queue_size("celery") == 1
    record = (await feed.store.get(["t1"]))["t1"]
    assert (record.state, record.result, list(record.args)) == ("PENDING", None, [1, 2])
    assert len(record.attempts) == 1


@pytest.mark.parametrize("state", ["PENDING", "STARTED", "RETRY"])
async def test_an_unfinished_task_is_not_enqueued_twice(
    client: Any, feed: Any, celery: Any, state: str
) -> None:
    await feed.enqueued()
    if state != "PENDING":
        await feed.state("t1", state)

    answer = await client(insecure=True).post("/tasks/t1/retry")

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:celeriac:problem:task-not-finished"
    assert await celery.queue_size("celery") == 0


@pytest.mark.parametrize("celery", ["memory", "sqlite", "redis"], indirect=True)
async def test_of_many_who_retry_a_task_at_once_one_does(client: Any, feed: Any, celery: Any) -> None:
    http = client(insecure=True)
    for again in range(1, 3):
        await feed.started()
        await feed.succeeded()
        ended = (await feed.store.get(["t1"]))["t1"]

        answers = await asyncio.gather(*(http.post("/tasks/t1/retry") for _ in range(8)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                celery.store, "get", AsyncMock(return_value={"t1": ended})
            )  # read before the others wrote
            late = await http.post("/tasks/t1/retry")

        assert sorted(each.status_code for each in answers) == [202, *[409] * 7]
        assert (late.status_code, late.json()["type"]) == (409, "urn:celeriac:problem:task-not-finished")
        assert await celery.queue_size("celery") == again


async def test_a_retry_that_the_broker_refused_may_be_tried_again(
    client: Any, feed: Any, celery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await feed.started()
    await feed.succeeded()
    http = client(insecure=True)
    with monkeypatch.context() as patch:
        patch.setattr(celery, "replay", AsyncMock(side_effect=BrokerUnavailable))
        refused = await http.post("/tasks/t1/retry")

    assert (refused.status_code, (await http.post("/tasks/t1/retry")).status_code) == (503, 202)


async def test_a_record_that_does_not_say_what_to_run_is_not_retried(client: Any, feed: Any) -> None:
    await feed.state("t1", "FAILURE")

    answer = await client(insecure=True).post("/tasks/t1/retry")

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:celeriac:problem:task-not-replayable"


@pytest.mark.parametrize("command", ["cancel", "retry"])
async def test_an_unknown_id_is_a_problem(client: Any, command: str) -> None:
    assert (await client(insecure=True).post(f"/tasks/nothing/{command}")).status_code == 404


@pytest.mark.parametrize("options", OPEN, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("state", ["FAILURE", "REVOKED", "SUCCESS"])
async def test_a_finished_task_is_deleted_with_its_events(
    client: Any, feed: Any, state: str, options: dict[str, Any]
) -> None:
    await feed.started(owner="ann")
    await feed.emitted("t1", "1")
    await feed.state("t1", state, result="null")
    http = client(**options)

    answer = await http.delete("/tasks/t1")

    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("/tasks/t1", "/tasks/t1/result", "/tasks/t1/events"):
        assert (await http.get(path)).status_code == 404
    assert (await http.delete("/tasks/t1")).status_code == 404
    assert (await http.get("/tasks")).json()["items"] == []
    assert not await feed.store.events("t1")


@pytest.mark.parametrize("state", ["PENDING", "STARTED", "RETRY", "SORTING"])
async def test_an_unfinished_task_is_cancelled_before_it_is_deleted(
    client: Any, feed: Any, state: str
) -> None:
    await feed.enqueued()
    if state != "PENDING":
        await feed.state("t1", state)
    http = client(insecure=True)

    answer = await http.delete("/tasks/t1")

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:celeriac:problem:task-not-finished"
    assert "Cancel it first" in answer.json()["detail"]
    assert (await http.get("/tasks/t1")).json()["state"] == state


async def test_somebody_elses_task_is_not_deleted(client: Any, feed: Any) -> None:
    await feed.enqueued(owner="bob")
    await feed.succeeded()

    assert (await client(owner=lambda: "ann").delete("/tasks/t1")).status_code == 404
    assert set(await feed.store.get(["t1"])) == {"t1"}
