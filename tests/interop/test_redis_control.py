"""``inspect``, ``control``, ``celery events`` and Flower of stock clients, and our worker on Redis."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from celery.exceptions import TaskRevokedError
from tests.acceptance.processes import Process, free_port, wait_until_up
from tests.interop.redis_site import PATIENCE, Site, StockClient, unique

pytestmark = pytest.mark.timeout(60)

NODE = "controlled@site"


@pytest.fixture(scope="module")
def worker(redis_site: Site) -> Process:
    return redis_site.worker("ours", "controlled", "-c", "4", "-E")


@pytest.fixture(scope="module")
def client(redis_site: Site, worker: Process) -> StockClient:
    return redis_site.stock_client(task_default_queue="controlled")


def inspect(client: StockClient, command: str) -> Any:
    # One answer is enough: waiting for the others of them takes a second.
    return client(f"app.control.inspect([node], timeout=10, limit=1).{command}", node=NODE)[NODE]


def test_inspect_tells_of_the_worker(client: StockClient) -> None:
    assert inspect(client, "ping()") == {"ok": "pong"}
    assert [queue["name"] for queue in inspect(client, "active_queues()")] == ["controlled"]
    assert {"add", "wait", "total"} <= set(inspect(client, "registered()"))
    assert inspect(client, "conf()")["task_default_queue"] == "controlled"
    stats = inspect(client, "stats()")
    assert stats["broker"]["transport"] == "redis"
    assert stats["pool"]["max-concurrency"] == 4


def test_inspect_tells_of_tasks(client: StockClient, redis_site: Site) -> None:
    name = unique()
    task_id = client("wait.delay(name).id", name=name)
    redis_site.notes(name, 1)

    (active,) = inspect(client, "active()")
    assert (active["id"], active["name"], active["args"]) == (task_id, "wait", [name])
    assert inspect(client, "query_task(task_id)".replace("task_id", repr(task_id)))[task_id][0] == "active"
    redis_site.open_gate(name)
    client.result(task_id)
    assert inspect(client, "stats()")["total"]["wait"] >= 1


def test_a_delayed_task_is_in_redis_and_reserved_by_no_worker(client: StockClient) -> None:
    task_id = client("add.apply_async((1, 1), countdown=2).id")

    deadline = time.monotonic() + 1.5
    while not (scheduled := inspect(client, "scheduled()")):
        assert time.monotonic() < deadline
    assert [entry["request"]["id"] for entry in scheduled] == [task_id]
    assert inspect(client, "reserved()") == []
    assert client.result(task_id) == 2


def test_control_adds_and_cancels_queues(client: StockClient) -> None:
    client("app.control.add_consumer('added', reply=True, destination=[node], limit=1)", node=NODE)
    assert client("add.apply_async((1, 2), queue='added').get(timeout=9)") == 3
    client("app.control.cancel_consumer('added', reply=True, destination=[node], limit=1)", node=NODE)

    assert [queue["name"] for queue in inspect(client, "active_queues()")] == ["controlled"]


def test_control_grows_and_shrinks_the_pool(client: StockClient) -> None:
    for command, size in (("pool_grow(2", 6), ("pool_shrink(2", 4)):
        client(f"app.control.{command}, reply=True, destination=[node], limit=1)", node=NODE)
        deadline = time.monotonic() + PATIENCE
        while inspect(client, "stats()")["pool"]["max-concurrency"] != size:
            assert time.monotonic() < deadline


def test_control_sets_limits(client: StockClient) -> None:
    command = "app.control.time_limit('sleep', hard=0.3, reply=True, destination=[node], limit=1)"
    client(command, node=NODE)

    with pytest.raises(Exception, match=r"0\.3"):
        client("sleep.delay(10).get(timeout=9)")


def test_a_revoked_task_is_listed(client: StockClient, redis_site: Site) -> None:
    task_id = client("add.apply_async((1, 1), countdown=0.5).id")
    client("app.control.revoke(task_id)", task_id=task_id)

    with pytest.raises(TaskRevokedError):
        client.result(task_id)
    assert task_id in inspect(client, "revoked()")


def test_celery_events_dumps_them(client: StockClient, redis_site: Site) -> None:
    dump = redis_site.run("stock", "events", "--dump")
    dump.wait_for_line(rf"{NODE} .*heartbeat")

    task_id = client("add.delay(1, 2).id")
    for event in ("received", "started", "succeeded"):
        dump.wait_for_line(rf"{NODE} .*task {event}.*{task_id}|{NODE} .*{task_id}.*{event}")
    dump.terminate()


def test_flower_sees_the_worker_and_its_tasks(
    client: StockClient, redis_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "1")
    flower = redis_site.run("stock", "flower", f"--port={port}", "--address=127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    wait_until_up(url, flower)

    def wait_for(path: str, key: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = httpx.get(f"{url}{path}", timeout=10)
            if answer.status_code == 200 and key in (found := answer.json()):
                return found[key]
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)

    seen = wait_for("/api/workers?refresh=1", NODE)
    assert [queue["name"] for queue in seen["active_queues"]] == ["controlled"]
    task_id = client("add.delay(20, 3).id")
    task = wait_for("/api/tasks", task_id)
    deadline = time.monotonic() + PATIENCE
    while task["state"] != "SUCCESS":
        assert time.monotonic() < deadline
        task = wait_for("/api/tasks", task_id)
    assert (task["name"], task["result"]) == ("add", "23")


def test_shutdown_ends_the_worker(client: StockClient, worker: Process) -> None:
    client("app.control.shutdown(destination=[node])", node=NODE)

    assert worker.wait() == 0
