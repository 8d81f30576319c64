"""The quickstart on Redis, where nothing but the broker's URL is different, and where its worker is killed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.ledger import wait_until_nothing_is_held
from tests.acceptance.processes import Launcher
from tests.acceptance.quickstart import Quickstart, wait_for
from tests.services import RedisServer

CSV = "a,b,c,d\n" + "1,2,3,4\n" * 10


@pytest.fixture
def app(tmp_path: Path, launcher: Launcher, redis_server: RedisServer) -> Quickstart:
    """The quickstart, half a second for each column of data, and two for a killed worker to be noticed."""
    app = Quickstart(
        tmp_path / "quickstart", launcher, {"CELERY_BROKER_URL": redis_server.url, "STEP_SECONDS": "0.5"}
    )
    with (app.folder / "worker" / "celery_app.py").open("a") as file:
        file.write("\ncelery.conf.celeriac_lease = 2\n")
    return app


def events(app: Quickstart, task_id: str, after: str | None = None, count: int | None = None) -> list[Any]:
    """Ids and names of a task's events: as many as wanted, or all until its end."""
    headers = {"Last-Event-ID": after} if after else {}
    seen: list[Any] = []
    with httpx.stream("GET", f"{app.url}/tasks/{task_id}/events", headers=headers, timeout=60) as stream:
        name = ""
        for line in stream.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "id":
                seen.append((value, name))
                if len(seen) == count:
                    break
    return seen


def test_a_worker_is_killed_in_the_middle_of_twenty_tasks(app: Quickstart, redis_server: RedisServer) -> None:
    app.start_api()
    worker = app.start_worker("-c", "10")
    ids = [app.process_data(CSV, user_id) for user_id in range(20)]
    first = events(app, ids[0], count=3)  # it has begun
    worker.kill()
    assert Counter(app.status(task_id)["status"] for task_id in ids)["SUCCESS"] == 0
    app.start_worker("-c", "10")
    for task_id in ids:
        assert app.wait_for_status(task_id)["status"] == "SUCCESS"

    rest = events(app, ids[0], after=first[-1][0])
    assert [*first, *rest] == events(app, ids[0])
    result = app.http.get(f"/tasks/{ids[19]}/result", params={"wait": 10})
    assert result.json()["result"]["user_id"] == 19
    page = app.http.get("/tasks", params={"state": "SUCCESS", "limit": 200}).json()
    assert [item["id"] for item in page["items"]] == ids[::-1]
    attempts = [len(app.record(task_id)["attempts"]) for task_id in ids]
    assert attempts[0] == 2
    assert set(attempts[10:]) == {1}  # for want of a slot, these had not begun
    assert max(attempts) == 2
    wait_until_nothing_is_held(redis_server)


def test_tasks_are_cancelled_and_retried(app: Quickstart, redis_server: RedisServer) -> None:
    app.start_api()
    early = app.process_data(CSV)
    assert app.http.post(f"/tasks/{early}/cancel").json()["cancelled"]
    app.start_worker("-c", "2")
    assert app.wait_for_status(early)["status"] == "REVOKED"
    running = app.process_data(CSV)
    events(app, running, count=3)
    assert app.http.post(f"/tasks/{running}/cancel").status_code == 202
    assert app.wait_for_status(running, timeout=5)["status"] == "REVOKED"
    assert app.http.get(f"/tasks/{running}/result").status_code == 409
    for task_id in (early, running):
        assert app.http.post(f"/tasks/{task_id}/retry").status_code == 202
    for task_id in (early, running):
        record = wait_for(
            lambda task_id=task_id: app.record(task_id), lambda record: record["state"] == "SUCCESS"
        )
        assert record["result"]["rows"] == 10
    wait_until_nothing_is_held(redis_server)
