from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.parametrize("celery", ["memory", "sqlite"], indirect=True)


async def test_a_record_tells_the_tasks_life(client: Any, feed: Any) -> None:
    await feed.started(owner="ann", root_id="t1")
    await feed.progressed("t1", '{"current": 3, "total": 10, "note": "rows"}')

    answer = await client().get("/tasks/t1")

    assert answer.status_code == 200
    body = answer.json()
    assert body["id"] == "t1"
    assert body["name"] == "shop.add"
    assert body["state"] == "STARTED"
    assert body["queue"] == "celery"
    assert (body["args"], body["kwargs"]) == ([1, 2], {})
    assert body["owner"] == "ann"
    assert body["worker"] == "w1@host"
    assert body["progress"] == {"current": 3, "total": 10, "note": "rows"}
    assert [attempt["worker"] for attempt in body["attempts"]] == ["w1@host"]
    assert body["started_at"].endswith("Z")
    assert body["finished_at"] is None
    assert body["cancel_requested"] is False
    assert answer.headers["cache-control"] == "no-store"


async def test_a_failed_record_has_an_error_and_no_result(client: Any, feed: Any) -> None:
    await feed.started()
    await feed.failed()

    body = (await client().get("/tasks/t1")).json()

    assert body["state"] == "FAILURE"
    assert body["error"] == {"type": "ValueError", "message": "bad row"}
    assert body["result"] is None
    assert "traceback" not in body


async def test_the_traceback_is_shown_on_request_of_the_app(client: Any, feed: Any) -> None:
    await feed.started()
    await feed.failed()

    body = (await client(include_traceback=True).get("/tasks/t1")).json()

    assert body["traceback"] == "Traceback: line 1"


async def test_an_unknown_id_is_a_problem(client: Any) -> None:
    answer = await client().get("/tasks/nothing")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == "urn:celeriac:problem:task-not-found"
    assert (body["status"], body["task_id"]) == (404, "nothing")
    assert body["title"]
    assert body["detail"]


async def test_the_list_pages_through_everything_once_and_newest_first(client: Any, feed: Any) -> None:
    ids = [await feed.enqueued(f"t{number}") for number in range(7)]
    http = client()

    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await http.get("/tasks", params=query)).json()
        assert len(page["items"]) <= 3
        seen += [item["id"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break

    assert seen == ids[::-1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "SUCCESS"}, ["done"]),
        ({"name": "shop.mail"}, ["mail"]),
        ({"queue": "slow"}, ["slow"]),
        ({"owner": "ann"}, ["anns"]),
        ({"search": "shop.ma"}, ["mail"]),
        ({"until": "2001-01-01T00:00:00"}, ["old"]),
        ({"since": "2000-01-01T00:00:00+01:00", "until": "2001-01-01"}, ["old"]),
        ({"state": "SUCCESS", "queue": "slow"}, []),
    ],
)
async def test_the_list_filters(client: Any, feed: Any, query: dict[str, str], expected: list[str]) -> None:
    await feed.enqueued("old", at=950_000_000.0)
    await feed.enqueued("mail", name="shop.mail")
    await feed.enqueued("slow", queue="slow")
    await feed.enqueued("anns", owner="ann")
    await feed.enqueued("done")
    await feed.succeeded("done")

    page = (await client().get("/tasks", params=query)).json()

    assert [item["id"] for item in page["items"]] == expected


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 201}, {"since": "yesterday"}, {"cursor": "no cursor!"}]
)
async def test_a_wrong_query_is_told_by_parameter(client: Any, feed: Any, query: dict[str, Any]) -> None:
    await feed.enqueued()

    answer = await client().get("/tasks", params=query)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", next(iter(query))]


async def test_the_list_shows_no_tracebacks(client: Any, feed: Any) -> None:
    await feed.enqueued()
    await feed.failed()

    page = (await client(include_traceback=True).get("/tasks")).json()

    assert "traceback" not in page["items"][0]
