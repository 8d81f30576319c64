"""Tasks whose records have expired: 410 to whoever may know that there was one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

_TWO_DAYS = 2 * 86_400.0

_ROUTES = [
    ("GET", "/tasks/t1"),
    ("GET", "/tasks/t1/result"),
    ("GET", "/tasks/t1/result?wait=1"),
    ("GET", "/tasks/t1/events"),
    ("POST", "/tasks/t1/cancel"),
    ("POST", "/tasks/t1/retry"),
    ("DELETE", "/tasks/t1"),
]


async def _expire(feed: Any, owner: str | None = None) -> datetime:
    """Have the record of t1 expire; when it did."""
    ended = datetime.now(UTC) - timedelta(seconds=_TWO_DAYS)
    await feed.enqueued(at=ended.timestamp(), owner=owner)
    await feed.state("t1", "SUCCESS", result="3", at=ended.timestamp())
    assert await feed.store.trim() == 1
    return ended + timedelta(days=1)


@pytest.mark.parametrize("celery", ["memory", "sqlite", "redis"], indirect=True)
@pytest.mark.parametrize(("method", "path"), _ROUTES)
async def test_an_expired_task_is_gone(client: Any, feed: Any, method: str, path: str) -> None:
    expired_at = await _expire(feed)

    answer = await client(insecure=True).request(method, path)

    assert answer.status_code == 410
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["type"] == "urn:celeriac:problem:task-expired"
    assert (body["status"], body["task_id"]) == (410, "t1")
    assert abs(datetime.fromisoformat(body["expired_at"]) - expired_at) < timedelta(seconds=1)


@pytest.mark.parametrize(("method", "path"), _ROUTES)
async def test_nobody_learns_that_somebody_elses_task_has_expired(
    client: Any, feed: Any, method: str, path: str
) -> None:
    await _expire(feed, owner="ann")

    answers = {
        owner: await client(owner=lambda owner=owner: owner).request(method, path) for owner in ("ann", "bob")
    }

    assert answers["ann"].status_code == 410
    assert answers["bob"].status_code == 404
    assert answers["bob"].json() == {
        "type": "urn:celeriac:problem:task-not-found",
        "title": "Task not found",
        "status": 404,
        "detail": "There is no record of this task id.",
        "task_id": "t1",
    }


async def test_an_expired_task_of_nobody_is_unknown_to_callers(client: Any, feed: Any) -> None:
    await _expire(feed)

    assert (await client(owner=lambda: "ann").get("/tasks/t1")).status_code == 404


async def test_a_task_that_is_enqueued_anew_is_there(client: Any, feed: Any) -> None:
    await _expire(feed)
    await feed.enqueued()

    answer = await client().get("/tasks/t1")

    assert (answer.status_code, answer.json()["state"]) == (200, "PENDING")


async def test_what_was_deleted_is_unknown(client: Any, feed: Any) -> None:
    await _expire(feed)
    await feed.enqueued()
    await feed.succeeded()
    http = client(insecure=True)

    assert (await http.delete("/tasks/t1")).status_code == 204
    assert (await http.get("/tasks/t1")).status_code == 404
