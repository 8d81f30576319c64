"""``celery control``: what our worker does when it is told to."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from kombu import Queue
from tests.acceptance.processes import Process
from tests.interop.remote_site import RemoteSite, wait_for

pytestmark = pytest.mark.timeout(90)

NODE = "told"


@pytest.fixture(scope="module")
def worker(remote_site: RemoteSite) -> Process:
    return remote_site.worker("ours", NODE, "-c", "3")


@pytest.fixture
def site(remote_site: RemoteSite, worker: Process) -> RemoteSite:
    return remote_site


def start(site: RemoteSite, gate: str, **options: Any) -> Any:
    """A task that runs until its gate is opened."""
    result = site.send(NODE, "wait", gate, **options)
    site.notes(f"start {gate}", 1)
    return result


def test_revoke_takes_one_id_and_several(site: RemoteSite) -> None:
    sent = [site.send(NODE, "note", "revoked", countdown=1) for _ in range(3)]
    site.client.control.revoke(sent[0].id)
    site.client.control.revoke([result.id for result in sent[1:]])
    for result in sent:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    assert not site.notes("revoked")
    assert {result.id for result in sent} <= set(site.inspect(NODE, "revoked"))


def test_a_revoke_lets_what_runs_go_on_and_terminate_does_not(site: RemoteSite) -> None:
    spared, ended = start(site, "spared"), start(site, "ended")
    site.client.control.revoke([spared.id, ended.id])
    assert {task["id"] for task in site.inspect(NODE, "active")} == {spared.id, ended.id}
    answer = site.control(NODE, "terminate", task_id=ended.id, signal="TERM")
    assert answer == {"ok": f"terminate: {ended.id}"}
    with pytest.raises(TaskRevokedError, match="terminated"):
        ended.get(timeout=10)
    site.open_gate("spared")
    assert spared.get(timeout=10) == "spared"


def test_stamped_headers_name_what_is_revoked_and_what_is_ended(site: RemoteSite) -> None:
    stamp = {"headers": {"stamped_headers": ["batch"], "stamps": {"batch": ["b1"]}}}
    running, other = start(site, "stamped", **stamp), start(site, "unstamped")
    answer = site.control(NODE, "revoke_by_stamped_headers", headers={"batch": ["b1"]}, terminate=True)
    assert "revoked" in answer["ok"]
    with pytest.raises(TaskRevokedError):
        running.get(timeout=10)
    with pytest.raises(TaskRevokedError):
        site.send(NODE, "note", "stamped too", **stamp).get(timeout=10)
    assert running.id not in site.inspect(NODE, "revoked")
    site.open_gate("unstamped")
    assert other.get(timeout=10) == "unstamped"


def test_time_limits_hold_for_what_starts_next(site: RemoteSite) -> None:
    assert "ok" in site.control(NODE, "time_limit", task_name="sleep", hard=0.2)
    with pytest.raises(Exception, match=r"0\.2"):
        site.send(NODE, "sleep", 20).get(timeout=10)
    assert "ok" in site.control(NODE, "time_limit", task_name="sleep", hard=None, soft=None)
    assert site.send(NODE, "sleep", 0.3).get(timeout=10) is None


@pytest.mark.parametrize("hard", ["x", -1, [], True])
def test_a_time_limit_that_is_none_is_refused(site: RemoteSite, hard: object) -> None:
    assert (
        "Invalid hard time limit" in site.control(NODE, "time_limit", task_name="sleep", hard=hard)["error"]
    )
    assert site.send(NODE, "sleep", 0.01).get(timeout=10) is None


def test_queues_come_and_go(site: RemoteSite) -> None:
    late = site.send("late", "add", 1, 2)
    assert site.control(NODE, "add_consumer", queue="late") == {"ok": "add consumer late"}
    assert late.get(timeout=10) == 3
    assert {queue["name"] for queue in site.inspect(NODE, "active_queues")} == {NODE, "late"}
    assert site.control(NODE, "cancel_consumer", queue="late") == {"ok": "no longer consuming from late"}
    wait_for(lambda: [queue["name"] for queue in site.inspect(NODE, "active_queues")] == [NODE])
    left = site.send("late", "add", 1, 2)
    assert site.send(NODE, "add", 1, 1).get(timeout=10) == 2
    assert left.state == "PENDING"


def test_a_queue_that_cannot_be_had_stops_nothing(site: RemoteSite, worker: Process) -> None:
    if not site.url.startswith("amqp"):
        pytest.skip("only RabbitMQ has kinds of queues")
    with site.client.connection() as connection:
        Queue("foreign", channel=connection.default_channel, durable=True).declare()
    site.control(NODE, "add_consumer", queue="foreign")
    worker.wait_for_line(
        "does not consume from foreign: The queue 'foreign' exists .* with another x-queue-type"
    )
    wait_for(lambda: [queue["name"] for queue in site.inspect(NODE, "active_queues")] == [NODE])
    assert site.send(NODE, "add", 1, 1).get(timeout=10) == 2


def test_a_grown_pool_runs_more_functions_at_once(site: RemoteSite) -> None:
    assert site.control(NODE, "pool_grow", n=2) == {"ok": "pool will grow"}
    wait_for(lambda: site.inspect(NODE, "stats")["pool"]["max-concurrency"] == 5)
    results = [site.send(NODE, "wait", f"grown{number}") for number in range(5)]
    site.notes("start grown", 5)
    for number, result in enumerate(results):
        site.open_gate(f"grown{number}")
        result.get(timeout=10)
    assert site.control(NODE, "pool_shrink", n=2) == {"ok": "pool will shrink"}
    wait_for(lambda: site.inspect(NODE, "stats")["pool"]["max-concurrency"] == 3)
    assert "error" in site.control(NODE, "pool_shrink", n=3)


def test_events_are_switched_on_and_off(site: RemoteSite) -> None:
    with site.events() as events:
        assert site.control(NODE, "enable_events") == {"ok": "task events enabled"}
        seen = site.send(NODE, "add", 1, 1)
        wait_for(lambda: [event["type"] for event in events.of(seen.id)][-1:] == ["task-succeeded"])
        assert site.control(NODE, "disable_events") == {"ok": "task events disabled"}
        unseen = site.send(NODE, "add", 1, 1)
        assert unseen.get(timeout=10) == 2
        before = len(events.of_worker(f"{NODE}@site", "worker-heartbeat"))
        site.control(NODE, "heartbeat")
        wait_for(lambda: len(events.of_worker(f"{NODE}@site", "worker-heartbeat")) > before)
        assert events.of(unseen.id) == []


def test_commands_without_a_meaning_here_are_answered(site: RemoteSite) -> None:
    assert site.control(NODE, "election", id="1", topic="leader", action="lead") is None
    assert "not enabled" in site.control(NODE, "pool_restart")["error"]
    assert "not enabled" in site.control(NODE, "autoscale", max=3)["error"]
    assert "error" in site.control(NODE, "no_such_command")


def test_shutdown_is_warm(remote_site: RemoteSite) -> None:
    worker = remote_site.worker("ours", "leaving")
    result = remote_site.send("leaving", "wait", "leave")
    remote_site.notes("start leave", 1)
    remote_site.client.control.shutdown(["leaving@site"])
    worker.wait_for_line("Got shutdown from remote")
    time.sleep(0.3)  # long enough for a cold one
    remote_site.open_gate("leave")
    assert result.get(timeout=10) == "leave"
    assert worker.wait() == 0
