"""Options of ``celery worker`` and ``celery multi``, given to our worker."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import TaskRevokedError
from tests.acceptance.processes import alive
from tests.interop.remote_site import RemoteSite, wait_for

pytestmark = [
    pytest.mark.timeout(90),
    # What options mean has nothing to do with the broker.
    pytest.mark.parametrize("remote_site", ["sqlite", "redis"], indirect=True, scope="module"),
]


def size(site: RemoteSite, node: str) -> int:
    concurrency: int = site.inspect(node, "stats")["pool"]["max-concurrency"]
    return concurrency


def test_autoscale_follows_the_work(remote_site: RemoteSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "1")
    worker = remote_site.worker("ours", "scaled", "--autoscale=6,2")
    assert size(remote_site, "scaled") == 2
    results = [remote_site.send("scaled", "wait", f"scaled{number}") for number in range(5)]
    remote_site.notes("start scaled", 5)
    assert remote_site.inspect("scaled", "stats")["autoscaler"] == {
        "max": 6,
        "min": 2,
        "current": 5,
        "qty": 5,
    }
    for number, result in enumerate(results):
        remote_site.open_gate(f"scaled{number}")
        result.get(timeout=10)
    wait_for(lambda: size(remote_site, "scaled") == 2)

    assert remote_site.control("scaled", "autoscale", max=9, min=4) == {"ok": "autoscale now max=9 min=4"}
    wait_for(lambda: size(remote_site, "scaled") == 4)
    assert "not supported with autoscale" in remote_site.control("scaled", "pool_grow", n=1)["error"]
    worker.terminate()
    assert worker.wait() == 0


def test_autoscale_of_processes_is_celerys(remote_site: RemoteSite) -> None:
    if not remote_site.url.startswith("redis"):
        pytest.skip("once is enough")
    worker = remote_site.worker("ours", "forked", "-P", "processes", "--autoscale=3,1", "--without-mingle")
    stats = remote_site.inspect("forked", "stats")
    assert stats["pool"]["implementation"] == "celery.concurrency.prefork:TaskPool"
    assert stats["autoscaler"]["max"] == 3
    assert remote_site.send("forked", "add", 1, 2).get(timeout=10) == 3
    worker.terminate()
    worker.wait()


def test_names_queues_and_the_log_level_are_what_the_options_say(remote_site: RemoteSite) -> None:
    worker = remote_site.run(
        "ours", "worker", "-n", "named@%h", "-l", "warning", "-c", "3", "-Q", "one,two,three", "-X", "two",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    )  # fmt: skip
    node = f"named@{socket.gethostname()}"
    wait_for(lambda: remote_site.client.control.ping([node], timeout=1))
    inspect = remote_site.client.control.inspect([node], timeout=10, limit=1)
    assert {queue["name"] for queue in inspect.active_queues()[node]} == {"one", "three"}
    assert inspect.stats()[node]["pool"]["max-concurrency"] == 3
    remote_site.send("three", "add", 1, 2).get(timeout=10)
    assert "received" not in worker.output
    worker.terminate()
    assert worker.wait() == 0


def test_beat_can_be_embedded(remote_site: RemoteSite) -> None:
    often = {"task": "note", "schedule": 0.2, "args": ["beat"], "options": {"queue": "beaten"}}
    worker = remote_site.worker("ours", "beaten", "-B", beat_schedule={"often": often})
    remote_site.notes("beat", 3)
    children = psutil.Process(worker.pid).children(recursive=True)
    worker.terminate()
    assert worker.wait() == 0
    wait_for(lambda: not any(alive(child.pid) for child in children))


def test_revokes_survive_a_restart_in_the_state_database(remote_site: RemoteSite) -> None:
    option = f"--statedb={remote_site.folder}/%n.state"
    worker = remote_site.worker("ours", "stateful", option)
    remote_site.control("stateful", "revoke", task_id="remembered")
    worker.terminate()
    worker.wait()
    again = remote_site.worker("ours", "stateful", option)
    assert remote_site.inspect("stateful", "revoked") == ["remembered"]
    with pytest.raises(TaskRevokedError):
        remote_site.send("stateful", "note", "forgotten", task_id="remembered").get(timeout=10)
    again.terminate()
    again.wait()


def test_the_workers_own_time_limits_are_for_tasks_without_one(remote_site: RemoteSite) -> None:
    worker = remote_site.worker("ours", "hurried", "--time-limit", "0.3", "--soft-time-limit", "60")
    with pytest.raises(Exception, match=r"0\.3"):
        remote_site.send("hurried", "sleep", 30).get(timeout=10)
    assert remote_site.inspect("hurried", "stats")["pool"]["timeouts"] == [60, 0.3]
    worker.terminate()
    worker.wait()


def test_what_has_no_effect_is_said_once_at_the_start(remote_site: RemoteSite) -> None:
    worker = remote_site.worker(
        "ours", "warned", "--max-tasks-per-child=5", "--max-memory-per-child=9", "--prefetch-multiplier=4"
    )
    for name in ("worker_max_tasks_per_child", "worker_max_memory_per_child", "worker_prefetch_multiplier"):
        assert worker.output.count(f"{name} has no effect") == 1
    assert remote_site.send("warned", "add", 1, 2).get(timeout=10) == 3
    worker.terminate()
    worker.wait()


def test_a_soft_shutdown_lets_short_tasks_finish(remote_site: RemoteSite) -> None:
    worker = remote_site.worker("ours", "soft", worker_soft_shutdown_timeout=3)
    result = remote_site.send("soft", "wait", "soft-gate")
    remote_site.notes("start soft-gate", 1)
    worker.signal(signal.SIGQUIT)
    worker.wait_for_line("Initiating Soft Shutdown, terminating in 3")
    remote_site.open_gate("soft-gate")
    assert result.get(timeout=10) == "soft-gate"
    worker.wait()


def test_a_worker_that_starts_learns_what_others_know_was_revoked(remote_site: RemoteSite) -> None:
    old = remote_site.worker("ours", "old")
    remote_site.control("old", "revoke", task_id="gone")
    new = remote_site.worker("ours", "new")
    wait_for(lambda: "gone" in remote_site.inspect("new", "revoked"))
    alone = remote_site.worker("ours", "alone", "--without-mingle")
    assert "gone" not in remote_site.inspect("alone", "revoked")
    for worker in (old, new, alone):
        worker.terminate()
    for worker in (old, new, alone):
        worker.wait()


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid))


def pid_in(path: Path) -> int:
    return int(wait_for(lambda: path.exists() and path.read_text().strip()))


def test_it_detaches_and_keeps_a_pidfile(remote_site: RemoteSite) -> None:
    folder = remote_site.folder
    starting = remote_site.run(
        "ours", "worker", "--detach", "-Q", "detached", "-n", "detached@site", "-l", "info",
        f"--pidfile={folder}/%n.pid", f"--logfile={folder}/%n.log", task_default_queue="detached",
    )  # fmt: skip
    assert starting.wait() == 0
    pid = pid_in(folder / "detached.pid")
    try:
        assert remote_site.send("detached", "add", 1, 2).get(timeout=20) == 3
        assert "Task add[" in (folder / "detached.log").read_text()
    finally:
        stop(pid)
    assert not (folder / "detached.pid").exists()


def test_multi_starts_restarts_and_stops_two_nodes(remote_site: RemoteSite) -> None:
    if not remote_site.url.startswith("sqlite"):
        pytest.skip("once is enough")
    folder = remote_site.folder

    def multi(command: str) -> Any:
        process = remote_site.run(
            "ours", "multi", command, "a@site", "b@site", "-Q", "many", "-l", "info",
            f"--pidfile={folder}/%n.pid", f"--logfile={folder}/%n.log", task_default_queue="many",
        )  # fmt: skip
        assert process.wait(60) == 0, process.output
        return process

    pids: list[int] = []
    try:
        multi("start")
        pids = [pid_in(folder / f"{node}.pid") for node in ("a", "b")]
        wait_for(lambda: len(remote_site.client.control.ping(["a@site", "b@site"], timeout=1)) == 2)
        assert remote_site.send("many", "add", 1, 2).get(timeout=10) == 3
        multi("restart")
        old, pids = pids, [pid_in(folder / f"{node}.pid") for node in ("a", "b")]
        assert not set(old) & set(pids)
        wait_for(lambda: len(remote_site.client.control.ping(["a@site", "b@site"], timeout=1)) == 2)
        multi("stopwait")
        assert not any(alive(pid) for pid in pids)
        pids = []
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
