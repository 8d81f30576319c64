"""Exposed tasks over real HTTP, on SQLite and on Redis: their results, and one task for each idempotency key."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from tests.acceptance.ledger import SOURCES, Ledger
from tests.acceptance.processes import Launcher, Process, free_port, wait_until_up
from tests.services import RedisServer

CALL = {"customer": "acme"}


@pytest.fixture(params=["sqlite", "redis"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, launcher: Launcher) -> Ledger:
    """The ledger's folder with the API of ``apps/exposed_api.py``."""
    url = None
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url
    ledger = Ledger(tmp_path / "app", launcher, url=url)
    shutil.copy(SOURCES / "exposed_api.py", ledger.folder)
    return ledger


def start_worker(ledger: Ledger) -> Process:
    worker = ledger.run("celery", "-A", "exposed_api.celery", "worker", "--loglevel=info", "-c", "10")
    worker.wait_for_line(r" ready\.$")
    return worker


def start_api(ledger: Ledger, *, env: Mapping[str, str] | None = None) -> str:
    url = f"http://127.0.0.1:{(port := free_port())}"
    arguments = ("uvicorn", "exposed_api:app", "--port", str(port))
    api = ledger.launcher.start(arguments, cwd=ledger.folder, env={**ledger.env, **(env or {})})
    wait_until_up(f"{url}/docs", api)
    return url


def post(url: str, key: str | None = None, **more: object) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return httpx.post(f"{url}/tasks/reports", json={**CALL, **more}, headers=headers, timeout=20)


def test_a_task_is_enqueued_waited_for_and_told_about(ledger: Ledger) -> None:
    url = start_api(ledger)
    start_worker(ledger)

    accepted = post(url, seconds=0.3)
    assert accepted.status_code == 202
    location = f"{url}{accepted.headers['location']}"
    assert httpx.get(location).status_code == 202
    finished = httpx.get(location, params={"wait": 20}, timeout=30)
    assert finished.status_code == 200
    assert finished.json() == {
        "task_id": accepted.json()["task_id"],
        "state": "SUCCESS",
        "progress": None,
        "result": {"customer": "acme", "rows": 3},
        "error": None,
    }
    assert httpx.get(location, headers={"X-User": "bob"}).status_code == 404
    with httpx.stream("GET", f"{url}{accepted.json()['links']['events']}", timeout=20) as stream:
        assert "event: end" in list(stream.iter_lines())

    failing = post(url, rows=-1).headers["location"]
    failed = httpx.get(f"{url}{failing}", params={"wait": 20}, timeout=30)
    assert (failed.status_code, failed.json()["exc_type"]) == (424, "ValueError")

    waiting = post(url, seconds=30).json()
    assert httpx.post(f"{url}{waiting['links']['cancel']}").status_code == 202
    status = httpx.get(f"{url}{waiting['links']['status']}", params={"wait": 20}, timeout=30)
    assert status.status_code == 409
    assert post(url, colour="red").status_code == 422


async def test_of_many_requests_with_one_key_to_two_processes_one_runs(ledger: Ledger) -> None:
    urls = [await asyncio.to_thread(start_api, ledger) for _ in range(2)]
    await asyncio.to_thread(start_worker, ledger)

    async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as http:
        answers = await asyncio.gather(
            *(
                http.post(f"{urls[number % 2]}/tasks/reports", json=CALL, headers={"Idempotency-Key": "key"})
                for number in range(64)
            )
        )
        assert {answer.status_code for answer in answers} == {202}
        (location,) = {answer.headers["location"] for answer in answers}
        replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
        assert sorted(replayed, key=str) == [None, *["true"] * 63]
        finished = await http.get(f"{urls[1]}{location}", params={"wait": 20})
        assert finished.status_code == 200

        task_id = finished.json()["task_id"]
        again = await asyncio.to_thread(post, urls[0], "key")
        assert (again.status_code, again.json()["state"]) == (202, "SUCCESS")
        assert again.json()["task_id"] == task_id
        other = await asyncio.to_thread(post, urls[1], "key", rows=4)
        assert (other.status_code, other.json()["type"]) == (
            409,
            "urn:celeriac:problem:idempotency-key-reused",
        )
        page = (await http.get(f"{urls[0]}/tasks")).json()
        assert [item["id"] for item in page["items"]] == [task_id]
    assert ledger.lines("start") == {task_id: 1}


async def test_a_process_killed_between_key_and_publish_does_not_take_the_task_with_it(
    ledger: Ledger,
) -> None:
    doomed = await asyncio.to_thread(start_api, ledger, env={"DIE_BEFORE_PUBLISH": "1"})
    urls = [await asyncio.to_thread(start_api, ledger) for _ in range(2)]
    await asyncio.to_thread(start_worker, ledger)

    with pytest.raises(httpx.TransportError):
        await asyncio.to_thread(post, doomed, "key")
    began = time.monotonic()
    answers = await asyncio.gather(
        *(asyncio.to_thread(post, urls[number % 2], "key") for number in range(16))
    )

    assert {answer.status_code for answer in answers} == {202}
    assert time.monotonic() - began < 10  # the dead one's deadline is 2 s
    (location,) = {answer.headers["location"] for answer in answers}
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(replayed, key=str) == [None, *["true"] * 15]
    finished = await asyncio.to_thread(httpx.get, f"{urls[0]}{location}", params={"wait": 20}, timeout=30)
    assert finished.status_code == 200
    assert ledger.lines("start") == {finished.json()["task_id"]: 1}
