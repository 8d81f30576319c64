"""The quickstart's behaviour over real HTTP, with API, worker and beat as processes on one SQLite file, or on Redis."""

from __future__ import annotations

import email
import email.policy
import json
import os
from collections.abc import Iterator

import pytest
from tests.acceptance.processes import Launcher
from tests.acceptance.quickstart import Quickstart, wait_for
from tests.services import running_redis

CSV = "name,age,score\nAda,36,9.5\nAlan,41,\nGrace,,7.5\n"


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quickstart]:
    """All of the quickstart, as in three terminals, with a heartbeat every second."""
    launcher = Launcher()
    app = Quickstart(tmp_path_factory.mktemp("app") / "quickstart", launcher, {"HEARTBEAT_SECONDS": "1"})
    try:
        if request.param == "redis":
            app.env["CELERY_BROKER_URL"] = request.getfixturevalue("quickstart_redis_url")
        app.start_worker()
        app.start_beat()
        app.start_api()
        yield app
    finally:
        launcher.clean_up()


@pytest.fixture(scope="module")
def quickstart_redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


def test_csv_is_summarized(app: Quickstart) -> None:
    answer = app.http.post("/process-data", json={"user_id": 42, "payload": CSV})
    assert answer.status_code == 202
    assert set(answer.json()) == {"message", "task_id"}
    status = app.wait_for_status(answer.json()["task_id"])
    assert status == {
        "task_id": answer.json()["task_id"],
        "status": "SUCCESS",
        "result": {
            "user_id": 42,
            "rows": 3,
            "columns": {
                "name": {"type": "text", "missing": 0, "min": "Ada", "max": "Grace", "mean": None},
                "age": {"type": "integer", "missing": 1, "min": 36, "max": 41, "mean": 38.5},
                "score": {"type": "number", "missing": 1, "min": 7.5, "max": 9.5, "mean": 8.5},
            },
        },
    }


def test_json_records_are_summarized(app: Quickstart) -> None:
    task_id = app.process_data(json.dumps([{"n": n, "even": n % 2 == 0} for n in range(1000)]))
    result = app.wait_for_status(task_id, "SUCCESS")["result"]
    assert result["rows"] == 1000
    assert result["columns"]["n"] == {"type": "integer", "missing": 0, "min": 0, "max": 999, "mean": 499.5}
    assert result["columns"]["even"]["type"] == "boolean"


def test_progress_can_be_followed_and_stays_in_the_record(app: Quickstart) -> None:
    task_id = app.process_data(CSV)
    app.wait_for_status(task_id, "SUCCESS")
    with app.http.stream("GET", f"/tasks/{task_id}/events") as stream:
        lines = list(stream.iter_lines())
    assert "event: progress" in lines
    assert [line for line in lines if "summarized age" in line]
    assert app.record(task_id)["progress"] == {"current": 3, "total": 3, "note": "summarized score"}


def test_bad_payload_fails_once_and_for_all(app: Quickstart) -> None:
    task_id = app.process_data('[{"n": 1}')
    status = app.wait_for_status(task_id)
    assert status["status"] == "FAILURE"
    assert status["result"].startswith("Task failed: ValueError - The payload is not valid JSON: ")
    assert len(app.record(task_id)["attempts"]) == 1


def test_unknown_task_is_404(app: Quickstart) -> None:
    answer = app.http.get("/task-status/1b4e28ba-2fa1-11d2-883f-0016d3cca427")
    assert answer.status_code == 404
    assert "1b4e28ba-2fa1-11d2-883f-0016d3cca427" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"recipient": "nobody", "subject": "Hi", "body": "…"},
        {"recipient": "ada@example.com", "subject": "Hi\r\nBcc: x@example.com", "body": "…"},
        {"recipient": "ada@example.com", "subject": "Hi"},
    ],
)
def test_bad_notification_is_refused(app: Quickstart, body: dict[str, str]) -> None:
    assert app.http.post("/send-notification", json=body).status_code == 422


def test_notification_becomes_a_file_in_the_outbox(app: Quickstart) -> None:
    task_id = app.post(
        "/send-notification", {"recipient": "ada@example.com", "subject": "Größe", "body": "Hello!\n"}
    )
    receipt = app.wait_for_status(task_id, "SUCCESS")["result"]
    message = email.message_from_bytes(
        (app.folder / receipt["sent_to"]).read_bytes(), policy=email.policy.default
    )
    assert message["To"] == receipt["recipient"] == "ada@example.com"
    assert message["Subject"] == "Größe"
    assert message["Message-ID"] == receipt["message_id"]
    assert message.get_content() == "Hello!\r\n"


def test_clean_up_written_as_plain_celery_code(app: Quickstart) -> None:
    app.outbox.mkdir(exist_ok=True)
    old = app.outbox / "old.eml"
    old.touch()
    os.utime(old, (0, 0))
    task_id = app.post("/clean-up")
    assert app.wait_for_status(task_id, "SUCCESS")["result"] == ["old.eml"]
    assert not old.exists()


def test_heartbeat_beats(app: Quickstart) -> None:
    page = wait_for(
        lambda: app.http.get("/tasks", params={"name": "worker.tasks.heartbeat", "state": "SUCCESS"}).json(),
        lambda page: len(page["items"]) >= 2,
    )
    assert page["items"][0]["result"]["load"] >= 0


def test_delay_and_async_result_from_a_plain_script(app: Quickstart) -> None:
    script = """
from celery.result import AsyncResult
from worker.tasks import process_data
pending = process_data.delay(7, "a,b\\n1,2")
print("result", pending.get(timeout=30)["rows"])
print("status", AsyncResult(pending.id, app=process_data.app).status)
"""
    process = app.run("python", "-c", script)
    assert process.wait() == 0, process.output
    assert process.output.splitlines()[-2:] == ["result 1", "status SUCCESS"]


def test_inspect_ping(app: Quickstart) -> None:
    process = app.celery("inspect", "ping")
    assert process.wait() == 0, process.output
    assert "pong" in process.output
    assert "1 node online" in process.output


def test_openapi_describes_every_route(app: Quickstart) -> None:
    paths = app.http.get("/openapi.json").json()["paths"]
    assert {"/process-data", "/send-notification", "/clean-up", "/task-status/{task_id}"} < set(paths)
    assert app.http.get("/").headers["location"] == "/docs"
