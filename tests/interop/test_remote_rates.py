"""``celery control rate_limit``, against a worker of ours in a process of its own."""

from __future__ import annotations

import pytest
from tests.acceptance.processes import Process
from tests.interop.remote_site import RemoteSite, wait_for

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def worker(remote_site: RemoteSite) -> Process:
    return remote_site.worker("ours", "rates", "-c", "4")


def test_a_new_rate_holds_for_what_waits_already(remote_site: RemoteSite, worker: Process) -> None:
    set_rate = remote_site.control("rates", "rate_limit", task_name="note", rate_limit="1/h")
    assert set_rate == {"ok": "new rate limit set successfully"}
    sent = [remote_site.send("rates", "note", "limited") for _ in range(3)]
    remote_site.notes("limited", 1)
    reserved = wait_for(lambda: len(found := remote_site.inspect("rates", "reserved")) == 2 and found)
    assert {task["id"] for task in reserved} < {result.id for result in sent}
    assert {task["time_start"] for task in reserved} == {None}
    assert remote_site.send("rates", "add", 1, 2).get(timeout=10) == 3

    revoked, *_ = (result for result in sent if result.id in {task["id"] for task in reserved})
    remote_site.client.control.revoke(revoked.id)
    wait_for(lambda: revoked.state == "REVOKED")

    answer = remote_site.control("rates", "rate_limit", task_name="note", rate_limit=0)
    assert answer == {"ok": "rate limit disabled successfully"}
    remote_site.notes("limited", 2)
    assert remote_site.inspect("rates", "reserved") == []
    assert remote_site.send("rates", "note", "free").get(timeout=10) is None
    assert len(remote_site.notes("limited")) == 2


def test_celery_control_sets_it(remote_site: RemoteSite, worker: Process) -> None:
    command = remote_site.run(
        "stock", "control", "--timeout", "10", "-d", "rates@site", "rate_limit", "note", "10/s"
    )
    command.wait_for_line("new rate limit set successfully")
    for _ in range(5):
        remote_site.send("rates", "note", "spread")
    times = [float(line.split()[1]) for line in remote_site.notes("spread", 5)]
    assert times[-1] - times[0] >= 0.35
    assert "rate_limit=10/s" in " ".join(remote_site.inspect("rates", "registered", "rate_limit"))


@pytest.mark.parametrize(("task", "rate"), [("unknown", "1/s"), ("note", "often")])
def test_what_cannot_be_set_is_answered(
    remote_site: RemoteSite, worker: Process, task: str, rate: str
) -> None:
    answer = remote_site.control("rates", "rate_limit", task_name=task, rate_limit=rate)
    assert "error" in answer
