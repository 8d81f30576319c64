from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.parametrize("celery", ["memory", "sqlite", "redis"], indirect=True)


async def test_a_result_is_given_at_once(client: Any, feed: Any) -> None:
    await feed.started()
    await feed.succeeded(result='{"sum": 3}')

    answer = await client().get("/tasks/t1/result")

    assert answer.status_code == 200
    assert answer.json() == {"task_id": "t1", "state": "SUCCESS", "result": {"sum": 3}}


async def test_a_running_task_is_accepted_and_asks_to_come_back(client: Any, feed: Any) -> None:
    await feed.started()

    answer = await client().get("/tasks/t1/result")

    assert answer.status_code == 202
    assert answer.json() == {"task_id": "t1", "state": "STARTED"}
    assert answer.headers["retry-after"] == "1"


async def test_waiting_ends_with_the_task(client: Any, feed: Any, watches: Any) -> None:
    await feed.started()
    asking = asyncio.create_task(client().get("/tasks/t1/result", params={"wait": 30}))
    await watches.some.wait()
    assert not asking.done()

    await feed.succeeded()

    async with asyncio.timeout(2):
        answer = await asking
    assert answer.json()["result"] == 3
    assert watches.open == 0


async def test_waiting_ends_with_the_time_and_tells_the_state_of_then(
    client: Any, feed: Any, watches: Any
) -> None:
    await feed.enqueued()
    began = time.monotonic()
    asking = asyncio.create_task(client().get("/tasks/t1/result", params={"wait": 0.3}))
    await watches.some.wait()
    await feed.state("t1", "STARTED")

    answer = await asking

    assert 0.25 < time.monotonic() - began < 2
    assert (answer.status_code, answer.json()["state"]) == (202, "STARTED")
    assert watches.open == 0


async def test_an_app_can_shorten_the_wait(client: Any, feed: Any) -> None:
    await feed.started()

    async with asyncio.timeout(5):
        answer = await client(longest_wait=0.1).get("/tasks/t1/result", params={"wait": 50})

    assert answer.status_code == 202


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon"])
async def test_a_wait_outside_the_bounds_is_refused(client: Any, feed: Any, wait: str) -> None:
    await feed.started()

    answer = await client().get("/tasks/t1/result", params={"wait": wait})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "wait"]


async def test_a_failed_task_is_a_failed_dependency(client: Any, feed: Any) -> None:
    await feed.started()
    await feed.failed()

    answer = await client().get("/tasks/t1/result")

    assert answer.status_code == 424
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:celeriac:problem:task-failed",
        "title": "Task failed",
        "status": 424,
        "detail": "ValueError: bad row",
        "task_id": "t1",
        "exc_type": "ValueError",
        "exc_message": "bad row",
    }


async def test_a_failure_has_its_traceback_on_request_of_the_app(client: Any, feed: Any) -> None:
    await feed.started()
    await feed.failed()

    answer = await client(include_traceback=True).get("/tasks/t1/result")

    assert answer.json()["traceback"] == "Traceback: line 1"


async def test_a_revoked_task_is_a_conflict(client: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.state("t1", "REVOKED")

    answer = await client().get("/tasks/t1/result", params={"wait": 1})

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:celeriac:problem:task-revoked"


async def test_an_unknown_id_is_not_waited_for(client: Any) -> None:
    async with asyncio.timeout(2):
        answer = await client().get("/tasks/nothing/result", params={"wait": 30})

    assert answer.status_code == 404


async def test_a_task_that_is_deleted_meanwhile_is_unknown(client: Any, feed: Any, watches: Any) -> None:
    await feed.started()
    asking = asyncio.create_task(client().get("/tasks/t1/result", params={"wait": 0.5}))
    await watches.some.wait()

    await feed.store.forget(["t1"])

    assert (await asking).status_code == 404


async def test_a_client_that_goes_away_is_waited_for_no_longer(server: Any, feed: Any, watches: Any) -> None:
    await feed.started()
    async with httpx.AsyncClient(base_url=server.url) as http:
        asking = asyncio.create_task(http.get("/tasks/t1/result", params={"wait": 60}))
        await watches.some.wait()
        asking.cancel()

    async with asyncio.timeout(2):
        await watches.none.wait()


async def test_a_hundred_wait_for_one_task(client: Any, feed: Any, watches: Any) -> None:
    await feed.started()
    http = client()
    asking = [asyncio.create_task(http.get("/tasks/t1/result", params={"wait": 30})) for _ in range(100)]
    await watches.count(100)

    await feed.succeeded()

    async with asyncio.timeout(5):
        answers = await asyncio.gather(*asking)
    assert {answer.json()["result"] for answer in answers} == {3}
    assert watches.open == 0


async def test_whoever_waits_does_not_ask_again_and_again(
    server: Any, feed: Any, watches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await feed.started()
    asked = 0
    get = feed.store.get

    async def counted(task_ids: Any) -> Any:
        nonlocal asked
        asked += 1
        return await get(task_ids)

    monkeypatch.setattr(feed.store, "get", counted)
    async with httpx.AsyncClient(base_url=server.url) as http:
        asking = asyncio.create_task(http.get("/tasks/t1/result", params={"wait": 30}))
        await watches.some.wait()
        done, _ = await asyncio.wait({asking}, timeout=0.5)
        assert not done
        # To see whether there is a record, and once more when it is watched.
        assert asked == 2
        await feed.progressed("t1", '{"current": 1}')
        await feed.succeeded()
        assert (await asyncio.wait_for(asking, 2)).json()["result"] == 3
    assert asked == 3
