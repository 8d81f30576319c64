"""The routes that change something, over HTTP: cancel, retry, and exposed tasks."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from tests.http.conftest import wait_for


def test_a_waiting_task_is_cancelled(shop: Any) -> None:
    task_id = shop.waiting()
    answer = shop.http.post(f"/tasks/{task_id}/cancel")

    assert answer.status_code == 202
    assert answer.json() == {"task_id": task_id, "state": "REVOKED", "cancelled": True}


def test_a_running_task_is_cancelled(shop: Any) -> None:
    task_id, _ = shop.running()

    assert shop.http.post(f"/tasks/{task_id}/cancel").json()["cancelled"]
    shop.ended(task_id, "REVOKED")


def test_a_finished_task_stays_as_it_is(shop: Any) -> None:
    task_id = shop.succeeded()
    answer = shop.http.post(f"/tasks/{task_id}/cancel")

    assert answer.status_code == 202
    assert answer.json() == {"task_id": task_id, "state": "SUCCESS", "cancelled": False}


def test_a_failed_task_is_tried_again_under_its_id(shop: Any) -> None:
    task_id = shop.failed()
    answer = shop.http.post(f"/tasks/{task_id}/retry")

    assert answer.status_code == 202
    assert answer.json() == {"task_id": task_id, "state": "PENDING"}
    wait_for(lambda: len(shop.record(task_id)["attempts"]) == 2)
    shop.ended(task_id, "FAILURE")


def test_a_task_that_has_not_finished_is_not_tried_again(shop: Any) -> None:
    answer = shop.http.post(f"/tasks/{shop.waiting()}/retry")

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:celeriac:problem:task-not-finished"


def test_a_finished_task_is_deleted(shop: Any) -> None:
    task_id = shop.succeeded()

    assert shop.http.delete(f"/tasks/{task_id}").status_code == 204
    for path in ("", "/result", "/events"):
        assert shop.http.get(f"/tasks/{task_id}{path}").status_code == 404
    assert shop.http.delete(f"/tasks/{task_id}").status_code == 404
    assert shop.http.delete(f"/tasks/{shop.waiting()}").status_code == 409
    assert shop.http.delete(f"/looks/{shop.succeeded()}").status_code == 403


def test_what_has_expired_is_gone_for_all_commands(shop: Any) -> None:
    path = f"/tasks/{shop.expired()}"

    assert shop.http.post(f"{path}/cancel").status_code == 410
    assert shop.http.post(f"{path}/retry").status_code == 410
    assert shop.http.delete(path).status_code == 410


def test_requests_of_one_key_are_one_task(shop: Any) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    first = shop.http.post("/tasks/sums", json={"x": 1, "y": 2}, headers=headers)
    again = shop.http.post("/tasks/sums", json={"x": 1, "y": 2}, headers=headers)
    other = shop.http.post("/tasks/sums", json={"x": 1, "y": 3}, headers=headers)

    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 409)
    assert again.json()["task_id"] == first.json()["task_id"]


@pytest.mark.parametrize("command", ["cancel", "retry"])
def test_unknown_tasks_and_closed_routes(shop: Any, command: str) -> None:
    assert shop.http.post(f"/tasks/nobody's/{command}").status_code == 404
    closed = shop.http.post(f"/looks/{shop.succeeded()}/{command}")
    assert closed.status_code == 403
    assert closed.json()["type"] == "urn:celeriac:problem:commands-closed"
    assert shop.http.get(f"/tasks/any/{command}").status_code == 405


def test_an_exposed_task_is_enqueued_and_asked_for(shop: Any) -> None:
    answer = shop.http.post("/tasks/reports", json={"customer": "ann", "limit": 7})

    assert answer.status_code == 202
    assert answer.headers["location"] == answer.json()["links"]["status"]
    told = shop.http.get(answer.headers["location"], params={"wait": 20})
    assert told.status_code == 200
    assert told.json()["result"] == {"customer": "ann", "rows": 7}
    with shop.http.stream("GET", answer.json()["links"]["events"]) as events:
        assert events.status_code == 200
        assert "event: end" in events.read().decode()


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, ["body", "customer"]),
        ({"customer": ""}, ["body", "customer"]),
        ({"customer": "ann", "limit": 101}, ["body", "limit"]),
        ({"customer": "ann", "since": "yesterday"}, ["body", "since"]),
        ([], ["body"]),
    ],
)
def test_a_body_that_does_not_fit_is_refused(shop: Any, body: Any, place: list[str]) -> None:
    answer = shop.http.post("/tasks/reports", json=body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == place


@pytest.mark.parametrize("x", ['"\\ud83d"', "NaN", "1e999", "[" * 200 + "]" * 200])
def test_what_no_answer_can_repeat_is_refused_all_the_same(shop: Any, x: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = shop.http.post("/tasks/sums", content=f'{{"x": {x}, "y": 1}}', headers=headers)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "x"]


def test_what_is_no_json_is_refused(shop: Any) -> None:
    answer = shop.http.post(
        "/tasks/reports", content=b'{"customer":', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422


def test_a_task_of_another_path_is_not_found(shop: Any) -> None:
    assert shop.http.get(f"/tasks/reports/{shop.succeeded()}").status_code == 404


def test_a_file_is_sent_to_a_task(shop: Any) -> None:
    answer = shop.http.post(
        "/tasks/byte-counts", files={"file": ("rows.csv", b"a,b\n1,2\n")}, data={"factor": "2"}
    )

    assert answer.status_code == 202
    assert shop.http.get(answer.headers["location"], params={"wait": 20}).json()["result"] == 16
    refused = shop.http.post("/tasks/byte-counts", data={"factor": "2"})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "file"]


def test_answers_carry_the_requests_id(shop: Any) -> None:
    answer = shop.http.get("/tasks", headers={"X-Request-ID": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
