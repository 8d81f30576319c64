"""The routes that read, over HTTP: list, record, result."""

from __future__ import annotations

import threading
from typing import Any

import pytest

PROBLEM = "application/problem+json"


def test_a_record_tells_how_its_task_went(shop: Any) -> None:
    answer = shop.http.get(f"/tasks/{shop.succeeded()}")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    record = answer.json()
    assert (record["state"], record["result"], record["args"]) == ("SUCCESS", 3, [1, 2])
    assert len(record["attempts"]) == 1


def test_a_record_tells_of_a_running_task(shop: Any) -> None:
    task_id, door = shop.running()
    record = shop.record(task_id)
    shop.open(door)

    assert (record["state"], record["finished_at"]) == ("STARTED", None)


def test_the_traceback_is_shown_where_the_app_has_asked_for_it(shop: Any) -> None:
    task_id = shop.failed()

    assert "traceback" not in shop.record(task_id)
    assert "bad row" in shop.http.get(f"/looks/{task_id}").json()["traceback"]


@pytest.mark.parametrize("path", ["", "/result", "/result?wait=1", "/events"])
def test_an_expired_record_is_gone(shop: Any, path: str) -> None:
    answer = shop.http.get(f"/tasks/{shop.expired()}{path}")

    assert answer.status_code == 410
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "urn:celeriac:problem:task-expired"


@pytest.mark.parametrize("path", ["", "/result", "/events"])
def test_an_unknown_id_is_not_found(shop: Any, path: str) -> None:
    answer = shop.http.get(f"/tasks/nobody's{path}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "urn:celeriac:problem:task-not-found"


def test_the_list_comes_in_pages_newest_first(shop: Any) -> None:
    ids = [shop.enqueue("add", 1, number, queue="paged") for number in range(5)]
    seen, cursor = [], None
    while True:
        query = {"queue": "paged", "limit": 2} | ({"cursor": cursor} if cursor else {})
        answer = shop.http.get("/tasks", params=query)
        assert answer.status_code == 200
        seen += [item["id"] for item in answer.json()["items"]]
        if (cursor := answer.json()["next_cursor"]) is None:
            break

    assert seen == ids[::-1]


@pytest.mark.parametrize(
    "query",
    [
        {"state": "FAILURE", "search": "needle"},
        {"name": "tests.http.shop.fail", "search": "needle"},
        {"since": "2020-01-01", "until": "2100-01-01T00:00:00+02:00", "search": "needle"},
    ],
)
def test_the_list_filters(shop: Any, query: dict[str, str]) -> None:
    task_id = shop.failed(f"a needle {sorted(query)}")
    page = shop.http.get("/tasks", params=query).json()

    assert page["items"][0]["id"] == task_id
    assert shop.http.get("/tasks", params={**query, "queue": "paged"}).json()["items"] == []


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": "many"}, {"since": "yesterday"}, {"cursor": "?"}, {"search": "a" * 201}]
)
def test_a_wrong_query_is_told_by_its_parameter(shop: Any, query: dict[str, Any]) -> None:
    answer = shop.http.get("/tasks", params=query)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", next(iter(query))]


def test_a_result_is_waited_for(shop: Any) -> None:
    task_id, door = shop.running()
    answer = shop.http.get(f"/tasks/{task_id}/result")
    assert answer.status_code == 202
    assert answer.json() == {"task_id": task_id, "state": "STARTED"}
    assert answer.headers["retry-after"]

    opening = threading.Timer(0.2, shop.open, [door])
    opening.start()
    answer = shop.http.get(f"/tasks/{task_id}/result", params={"wait": 20})
    opening.join()

    assert answer.status_code == 200
    assert answer.json() == {"task_id": task_id, "state": "SUCCESS", "result": "opened"}


def test_a_failure_is_the_tasks_and_not_the_servers(shop: Any) -> None:
    answer = shop.http.get(f"/tasks/{shop.failed()}/result")

    assert answer.status_code == 424
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert (body["exc_type"], body["exc_message"]) == ("ValueError", "bad row")
    assert "traceback" not in body


def test_half_a_surrogate_pair_is_carried_to_the_task_and_back(shop: Any) -> None:
    task_id = shop.failed("half \ud83d of it")

    record = shop.record(task_id)
    assert record["args"] == ["half \\ud83d of it"]
    assert record["error"] == {"type": "ValueError", "message": "half \\ud83d of it"}
    answer = shop.http.get(f"/tasks/{task_id}/result")
    assert (answer.status_code, answer.json()["exc_message"]) == (424, "half \\ud83d of it")
    assert shop.http.get("/tasks", params={"state": "FAILURE"}).json()["items"][0] == record
    with shop.http.stream("GET", f"/tasks/{task_id}/events") as events:
        assert "half \\\\ud83d of it" in events.read().decode()


def test_the_result_of_a_revoked_task_is_a_conflict(shop: Any) -> None:
    answer = shop.http.get(f"/tasks/{shop.revoked()}/result")

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:celeriac:problem:task-revoked"


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "long"])
def test_a_wrong_wait_is_refused(shop: Any, wait: str) -> None:
    assert shop.http.get(f"/tasks/{shop.waiting()}/result", params={"wait": wait}).status_code == 422


def test_each_caller_sees_their_own_tasks(shop: Any) -> None:
    ann, bob = {"X-User": "ann"}, {"X-User": "bob"}
    answer = shop.http.post("/mine/sums", json={"x": 1, "y": 2}, headers=ann)
    task_id = answer.json()["task_id"]

    assert answer.status_code == 202
    assert shop.http.get(f"/mine/{task_id}", headers=ann).json()["owner"] == "ann"
    assert task_id in [item["id"] for item in shop.http.get("/mine", headers=ann).json()["items"]]
    assert shop.http.get("/mine", headers=bob).json()["items"] == []
    for path in ("", "/result", "/events"):
        assert shop.http.get(f"/mine/{task_id}{path}", headers=bob).status_code == 404
        assert shop.http.get(f"/mine/{task_id}{path}").status_code == 401
    for path in ("cancel", "retry"):
        assert shop.http.post(f"/mine/{task_id}/{path}", headers=bob).status_code == 404
        assert shop.http.post(f"/mine/{task_id}/{path}").status_code == 401
